"use strict";

// The server sends counters that only grow. What is shown is the difference between the newest reading and the oldest
// one of the last WINDOW_S seconds, for each group of gateway processes that has answered, added up. A node's gateways
// answer as a group; when one of them is replaced, the counters of the group begin anew.

const POLL_MS = 1000;
const WINDOW_S = 8;
const TRAIL = 90; // points of the line of requests per second
const COLOURS = 6;

const readings = new Map(); // names of gateways -> readings, oldest first
const trails = new Map(); // model -> requests per second
const cards = new Map(); // model -> its elements
const byId = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function colour(version) {
  return "c" + ((Number(version) - 1) % COLOURS);
}

function remember(reading) {
  const kept = readings.get(reading.gateway) || [];
  const last = kept[kept.length - 1];
  if (last && last.at_s >= reading.at_s) return;
  kept.push(reading);
  while (kept.length > 2 && reading.at_s - kept[1].at_s >= WINDOW_S) kept.shift();
  readings.set(reading.gateway, kept);
  const members = new Set(reading.gateway.split(","));
  for (const gateway of [...readings.keys()]) {
    if (gateway !== reading.gateway && gateway.split(",").some((name) => members.has(name))) readings.delete(gateway);
  }
  for (const [gateway, list] of readings) {
    if (reading.at_s - list[list.length - 1].at_s > 2 * WINDOW_S) readings.delete(gateway);
  }
}

function countsOf(reading, model, version) {
  const found = reading.models.find((m) => m.name === model);
  const entry = found && found.versions.find((v) => v.version === version);
  return entry ? entry.counts : null;
}

// {rate, errors, buckets, batches, rows}: per second, but for buckets, batches and rows, which are over the window.
function recent(model, version) {
  const sum = { rate: 0, errors: 0, buckets: [], batches: 0, rows: 0 };
  for (const list of readings.values()) {
    const first = list[0], last = list[list.length - 1];
    const span = last.at_s - first.at_s;
    const now = countsOf(last, model, version);
    if (!now || span <= 0) continue;
    const then = countsOf(first, model, version);
    for (const [status, count] of Object.entries(now.status)) {
      const grown = Math.max(0, count - ((then && then.status[status]) || 0)) / span;
      if (status === "200") sum.rate += grown;
      else sum.errors += grown;
    }
    now.request_buckets.forEach((count, i) => {
      sum.buckets[i] = (sum.buckets[i] || 0) + Math.max(0, count - (then ? then.request_buckets[i] : 0));
    });
    sum.batches += Math.max(0, now.batches - (then ? then.batches : 0));
    sum.rows += Math.max(0, now.batch_rows - (then ? then.batch_rows : 0));
  }
  return sum;
}

function quantile(bounds, buckets, q) {
  const total = buckets.reduce((a, b) => a + b, 0);
  if (!total) return null;
  let below = 0;
  for (let i = 0; i < buckets.length; i++) {
    if (below + buckets[i] >= q * total) {
      const low = i ? bounds[i - 1] : 0;
      const high = i < bounds.length ? bounds[i] : low;
      return low + (high - low) * ((q * total - below) / buckets[i]);
    }
    below += buckets[i];
  }
  return bounds[bounds.length - 1];
}

function milliseconds(seconds) {
  if (seconds === null) return "–";
  const ms = seconds * 1000;
  return (ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en")) + " ms";
}

function number(value) {
  if (value === 0) return "0";
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function segments(bar, shares) {
  const total = Object.values(shares).reduce((a, b) => a + b, 0);
  const wanted = Object.keys(shares).filter((version) => shares[version] > 0);
  for (const child of [...bar.children]) if (!wanted.includes(child.dataset.version)) child.remove();
  for (const version of wanted) {
    let part = [...bar.children].find((child) => child.dataset.version === version);
    if (!part) {
      part = element("i", colour(version));
      part.dataset.version = version;
      bar.append(part);
    }
    const percent = (100 * shares[version]) / total;
    part.style.width = percent + "%";
    part.textContent = percent >= 6 ? `${version}: ${percent.toFixed(percent % 1 > 0.05 ? 1 : 0)} %` : "";
    part.title = `version ${version}: ${percent.toFixed(2)} %`;
  }
}

function card(model) {
  const shape = JSON.stringify([model.versions.map((v) => [v.version, v.labels, v.format, v.precision])]);
  let made = cards.get(model.name);
  if (made && made.shape === shape) return made;
  const old = made;
  made = { shape, rows: new Map() };
  made.revision = element("span", "revision");
  made.spark = document.createElementNS(byId("mark").namespaceURI, "svg");
  made.spark.setAttribute("class", "spark");
  made.spark.setAttribute("viewBox", `0 0 ${TRAIL - 1} 30`);
  made.spark.setAttribute("preserveAspectRatio", "none");
  made.intended = element("div", "bar");
  made.seen = element("div", "bar seen");
  const heads = ["version", "state", "replicas", "requests/s", "p50", "p99", "rows/batch", "waiting", "errors/s"];
  const body = element("tbody");
  for (const v of model.versions) {
    const dot = element("i", "dot " + colour(v.version));
    const name = element("td", "", dot, v.version);
    for (const label of v.labels) name.append(element("span", "label", label));
    name.append(element("span", "kind", `${v.format} ${v.precision}`));
    const cells = heads.slice(1).map(() => element("td"));
    made.rows.set(v.version, cells);
    body.append(element("tr", "", name, ...cells));
  }
  const head = element("thead", "", element("tr", "", ...heads.map((text) => element("th", "", text))));
  made.root = element(
    "section",
    "model",
    element("div", "top", element("h2", "", model.name), made.revision, made.spark),
    element("div", "bars", element("span", "", "intended"), made.intended, element("span", "", "seen"), made.seen),
    element("div", "scroll", element("table", "", head, body)),
  );
  if (old) old.root.replaceWith(made.root);
  cards.set(model.name, made);
  return made;
}

function draw(made, name) {
  const trail = trails.get(name) || [];
  const most = Math.max(1e-9, ...trail);
  const points = trail.map((rate, i) => `${TRAIL - trail.length + i},${(28 - (26 * rate) / most).toFixed(2)}`);
  const parts = [["polyline", points.join(" ")]];
  if (points.length) parts.push(["polygon", `${TRAIL - trail.length},29 ${points.join(" ")} ${TRAIL - 1},29`]);
  made.spark.replaceChildren(
    ...parts.map(([tag, list]) => {
      const part = document.createElementNS(made.spark.namespaceURI, tag);
      part.setAttribute("points", list);
      return part;
    }),
  );
}

function show(reading) {
  const total = { rate: 0, errors: 0, buckets: [], replicas: 0 };
  const place = byId("models");
  for (const model of reading.models) {
    const made = card(model);
    if (!made.root.isConnected) place.append(made.root);
    made.revision.textContent = "revision " + model.revision;
    const seen = {};
    let rate = 0;
    for (const v of model.versions) {
      const now = recent(model.name, v.version);
      seen[v.version] = now.rate + now.errors;
      rate += now.rate;
      total.rate += now.rate;
      total.errors += now.errors;
      total.replicas += v.replicas;
      now.buckets.forEach((count, i) => (total.buckets[i] = (total.buckets[i] || 0) + count));
      const cells = made.rows.get(v.version);
      const state = element("span", "state " + v.state, v.state);
      cells[0].replaceChildren(state);
      if (v.reason) {
        const reason = element("span", "reason", v.reason);
        reason.title = v.reason;
        cells[0].append(reason);
      }
      const texts = [
        v.deployed ? (v.replicas === v.target_replicas ? `${v.replicas}` : `${v.replicas} → ${v.target_replicas}`) : "–",
        number(now.rate),
        milliseconds(quantile(reading.bounds_s, now.buckets, 0.5)),
        milliseconds(quantile(reading.bounds_s, now.buckets, 0.99)),
        now.batches ? (now.rows / now.batches).toFixed(1) : "–",
        number(v.waiting_rows),
        number(now.errors),
      ];
      texts.forEach((text, i) => {
        cells[i + 1].textContent = text;
        cells[i + 1].className = text === "–" || text === "0" ? "none" : i === 6 ? "bad" : "";
      });
    }
    segments(made.intended, model.split);
    segments(made.seen, seen);
    const trail = trails.get(model.name) || [];
    trail.push(rate);
    if (trail.length > TRAIL) trail.shift();
    trails.set(model.name, trail);
    draw(made, model.name);
  }
  for (const [name, made] of cards) {
    if (!reading.models.some((model) => model.name === name)) {
      made.root.remove();
      cards.delete(name);
      trails.delete(name);
    }
  }
  byId("empty").hidden = reading.models.length > 0;
  byId("rate").textContent = number(total.rate);
  byId("errors").textContent = number(total.errors);
  byId("errors").className = total.errors > 0 ? "bad" : "";
  byId("replicas").textContent = total.replicas;
  byId("p50").textContent = milliseconds(quantile(reading.bounds_s, total.buckets, 0.5));
  byId("p99").textContent = milliseconds(quantile(reading.bounds_s, total.buckets, 0.99));
  byId("gateway").textContent = "gateway " + [...readings.keys()].join(", ");
}

async function poll() {
  const status = byId("status");
  try {
    const answer = await fetch("api/v1/overview", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const reading = await answer.json();
    remember(reading);
    show(reading);
    status.textContent = reading.draining ? "draining" : "live";
    status.className = "status live";
  } catch (error) {
    status.textContent = "no answer";
    status.className = "status lost";
  }
  setTimeout(poll, POLL_MS);
}

poll();
