"""Load tests: seeded open-loop arrivals, Locust users, reports."""
