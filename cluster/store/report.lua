-- Replace a model's statuses, unless the model was removed meanwhile.
--
-- KEYS  model hash, statuses hash
-- ARGV  version, status, version, status, ...
if redis.call('HEXISTS', KEYS[1], 'document') == 0 then return 0 end
redis.call('DEL', KEYS[2])
for i = 1, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return 1
