-- One change of one model: compare, write, append to the audit stream and tell whoever listens, all or nothing.
--
-- KEYS  model hash, audit stream, statuses hash (one hash tag, so one slot)
-- ARGV  revision expected (0: there must be no document), epoch, document (empty: remove), operation, by, reason,
--       request id, audit entries to keep, channel, model, number that the new revision must be above
-- Returns {1, revision} if it was written, else {0, revision, fields of the latest audit entry or nil}.
local model = redis.call('HMGET', KEYS[1], 'revision', 'document', 'epoch')
local revision = tonumber(model[1] or '0')
local current = model[2] and revision or 0

if current ~= tonumber(ARGV[1]) or (model[3] and model[3] ~= ARGV[2]) then
  -- A writer whose reply was lost asks again with the same request id: it is told what it did.
  local entries = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 20)
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    for i = 1, #fields, 2 do
      if fields[i] == 'request' and fields[i + 1] == ARGV[7] then
        for j = 1, #fields, 2 do
          if fields[j] == 'revision' then return {1, tonumber(fields[j + 1])} end
        end
      end
    end
  end
  return {0, revision, entries[1] and entries[1][2] or false}
end

local document = ARGV[3]
revision = math.max(revision, tonumber(ARGV[11])) + 1
if document == '' then
  if not model[2] then return {0, tonumber(model[1] or '0'), false} end
  document = model[2]
  redis.call('HDEL', KEYS[1], 'document')
  redis.call('DEL', KEYS[3])
else
  redis.call('HSET', KEYS[1], 'document', document)
end
redis.call('HSET', KEYS[1], 'revision', revision, 'epoch', ARGV[2])

local time = redis.call('TIME')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*',
  'revision', revision, 'operation', ARGV[4], 'by', ARGV[5], 'reason', ARGV[6], 'request', ARGV[7],
  'at_s', string.format('%d.%06d', tonumber(time[1]), tonumber(time[2])), 'document', document)
redis.call('PUBLISH', ARGV[9], ARGV[10] .. ' ' .. revision)
return {1, revision}
