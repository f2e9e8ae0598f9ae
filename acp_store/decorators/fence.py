"""What keeps a cache right: marks of writes under way, and leases for those who fill.

Each cached thing is three keys of one hash slot: its values (a hash), its marks (a sorted set) and
its leases (a hash). All rules are in these scripts, each of which Redis runs as one step
(https://redis.io/docs/latest/develop/interact/programmability/eval-intro/):

* Who misses may fill only with a lease, given before it reads the database.
* Who writes marks first: the values and all leases go, and no lease is given while a mark is there.
* Who has written takes the mark away, and whatever values and leases there are.

So a value that stands was read after the last acknowledged write began to be visible, whatever
stalls or dies in between. A writer that dies leaves its mark, which keeps the thing uncached until
the mark expires; one that takes longer than that falls back on the values' time to live.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BEGIN", "END", "FILL", "READ"]

_CALL: Final = """
local function call(command, key, ...)
    local answer = redis.pcall(command, key, ...)
    if type(answer) == 'table' and answer.err then
        if not string.find(answer.err, 'WRONGTYPE') then error(answer) end
        redis.call('DEL', key)
        answer = redis.call(command, key, ...)
    end
    return answer
end
"""

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

READ: Final = (
    _CALL
    + """
local value = call('HGET', KEYS[1], ARGV[1])
if value then return {'value', value} end
"""
    + _NOW
    + """
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('EXISTS', KEYS[2]) == 1 then return {'marked'} end
local lease = call('HGET', KEYS[3], ARGV[1])
if lease then
    local ends, token = string.match(lease, '^(%d+) (%x+)$')
    if token == ARGV[2] then return {'lease', lease} end
    ends = tonumber(ends or 0)
    if ends > now and ends <= now + ARGV[3] then return {'leased'} end
end
lease = string.format('%.0f', now + ARGV[3]) .. ' ' .. ARGV[2]
call('HSET', KEYS[3], ARGV[1], lease)
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return {'lease', lease}
"""
)
"""KEYS: values, marks, leases. ARGV: field, token, milliseconds of a lease. Returns what was found, and it.

Who asks again with the token of a lease, as its answer was lost, gets that lease."""

FILL: Final = (
    _CALL
    + """
if call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return 0 end
local kept = 1
local ttl = tonumber(ARGV[3])
for _, key in ipairs({KEYS[1], KEYS[4]}) do
    local left = redis.call('PTTL', key)
    if left >= 0 then ttl = math.min(ttl, math.max(1, left)) end
end
for place = 5, #ARGV, 2 do
    if kept == 1 and call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then
        -- This comes before all other writes: after one, Redis would exceed its memory for the rest.
        local answer = redis.pcall('HSET', KEYS[1], ARGV[place], ARGV[place + 1])
        if type(answer) == 'table' and answer.err then kept = 0 end
    end
end
redis.call('HDEL', KEYS[3], ARGV[1])
if kept == 1 and #ARGV > 4 then
    redis.call('PEXPIRE', KEYS[1], ttl)
    if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('PEXPIRE', KEYS[4], ttl) end
end
return kept
"""
)
"""KEYS: values, marks, leases, the values that expire with them. ARGV: field, lease, ttl in
milliseconds, most fields; then fields and values. Returns 0 where the lease or the memory is gone."""

BEGIN: Final = (
    _CALL
    + _NOW
    + """
for place = 1, #KEYS, 3 do
    redis.call('DEL', KEYS[place], KEYS[place + 2])
    call('ZADD', KEYS[place + 1], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[place + 1], ARGV[2])
end
return 1
"""
)
"""KEYS: values, marks, leases of each thing. ARGV: token, milliseconds of a mark."""

END: Final = (
    _CALL
    + """
for place = 1, #KEYS, 3 do
    redis.call('DEL', KEYS[place], KEYS[place + 2])
    if ARGV[1] then call('ZREM', KEYS[place + 1], ARGV[1]) end
end
return 1
"""
)
"""KEYS: values, marks, leases of each thing. ARGV: token."""
