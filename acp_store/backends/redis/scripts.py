r"""The writes, and the reads of the index, as Lua scripts: each is atomic, and one round trip.

Every script gets the keys of one partition, ``index expiries facts totals``, then those of the run
or session it is about. It lets go of what has expired before it looks at the index. As Redis undoes
nothing when a script fails half-way, each reads the keys that more than one write
goes to before the first: a key of another type is an error before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Final

__all__ = [
    "ADD_EVENTS",
    "APPEND_MESSAGES",
    "DELETE_RUN",
    "DELETE_SESSION",
    "FIND_RUNS",
    "GET_SESSION",
    "SAVE_RUN",
    "SAVE_SESSION",
    "STATS",
    "TEXTS",
    "TIDY",
    "Script",
]

TEXTS: Final[dict[str, str]] = {}
"""The scripts' texts by their digests, for a server that does not know them yet."""


@dataclass(frozen=True)
class Script:
    """One script."""

    text: str = field(repr=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)
        TEXTS[digest] = self.text

    def __call__(self, keys: tuple[bytes, ...], *arguments: Any) -> tuple[Any, ...]:
        """Return the command that runs it."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)


# How many expired entries a write lets go of, and how many a read, which repeats until none is left.
_CLOCK = r"""
local index, expiries, facts, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local micros = time[1] .. string.format('%06d', time[2])
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function check()
  redis.call('ZCARD', index)
  redis.call('HLEN', facts)
  redis.call('HLEN', totals)
end

local function count(name, n)
  if redis.call('HINCRBY', totals, name, n) <= 0 then redis.call('HDEL', totals, name) end
end

local function members_of(id, fact)
  local name = string.sub(fact, 1, 18) .. id
  local agent, session, status = string.match(fact, '^(%Z*)%z(%Z*)%z(%Z*)$', 19)
  local members = {'r' .. name, 'a' .. agent .. '\0' .. name, 't' .. status .. '\0' .. name}
  if session ~= '' then members[4] = 's' .. session .. '\0' .. name end
  return members, status
end

-- The member of the index that says that there is such a run or session.
local function member_of(entry)
  return string.upper(string.sub(entry, 1, 1)) .. string.sub(entry, 2)
end

local function forget(entry)
  local id = string.sub(entry, 2)
  redis.call('ZREM', index, member_of(entry))
  if string.sub(entry, 1, 1) == 's' then
    local messages = redis.call('HGET', facts, 'm' .. id)
    if messages then
      count('sessions', -1)
      count('messages', -messages)
      redis.call('HDEL', facts, 'm' .. id)
    end
    redis.call('ZREM', expiries, entry)
    return
  end
  local known = redis.call('HMGET', facts, 'r' .. id, 'e' .. id)
  if known[1] then
    local members, status = members_of(id, known[1])
    redis.call('ZREM', index, unpack(members))
    count('runs', -1)
    count('status:' .. status, -1)
  end
  if known[2] then count('events', -known[2]) end
  redis.call('HDEL', facts, 'r' .. id, 'e' .. id)
  redis.call('ZREM', expiries, entry)
end

local function sweep(most)
  local gone = redis.call('ZRANGEBYSCORE', expiries, '-inf', '(' .. string.format('%.0f', now), 'LIMIT', 0, most)
  if #gone > 0 then check() end
  for _, entry in ipairs(gone) do forget(entry) end
  return #gone == most, gone
end
"""

_ENTITY = (
    _CLOCK
    + r"""
local id, ttl = ARGV[1], tonumber(ARGV[2])
local expiry = ttl and now + ttl

-- What has expired, and is to be made anew, begins with nothing.
local function settle(own)
  local more, gone = sweep(10)
  local expired = false
  for _, entry in ipairs(gone) do expired = expired or entry == own end
  if more and not expired then
    local at = redis.call('ZSCORE', expiries, own)
    expired = at and at ~= 'inf' and tonumber(at) < now
    if expired then forget(own) end
  end
  if expired then redis.call('UNLINK', unpack(KEYS, 5)) end
end

local function touch(entry)
  for place = 5, #KEYS do
    if expiry then redis.call('PEXPIREAT', KEYS[place], expiry) else redis.call('PERSIST', KEYS[place]) end
  end
  if redis.call('ZADD', expiries, expiry or '+inf', entry) == 1 then
    redis.call('ZADD', index, 0, member_of(entry))
  end
  local left = redis.call('PTTL', expiries)
  if (left >= 0 and expiry and now + left >= expiry) or (left < 0 and not expiry) then return end
  -- The partition's keys outlive the last entry, and by so much that this is rarely to be done again.
  local last = redis.call('ZRANGE', expiries, -1, -1, 'WITHSCORES')[2]
  for place = 1, 4 do
    if last == 'inf' then
      redis.call('PERSIST', KEYS[place])
    else
      redis.call('PEXPIREAT', KEYS[place], tonumber(last) + ttl)
    end
  end
end
"""
)

_RUN = (
    _ENTITY
    + r"""
local run, events, keys = KEYS[5], KEYS[6], KEYS[7]
settle('r' .. id)

local function publish()
  redis.pcall('PUBLISH', ARGV[3], ARGV[4])  -- a hint, which an ACL may forbid
end
"""
)

_SESSION = (
    _ENTITY
    + r"""
local head, messages = KEYS[5], KEYS[6]
settle('s' .. id)

local function push(first)
  for place = first, #ARGV, 1000 do
    redis.call('RPUSH', messages, unpack(ARGV, place, math.min(place + 999, #ARGV)))
  end
  return #ARGV - first + 1
end
"""
)

SAVE_RUN: Final = Script(
    _RUN
    + r"""
local json, status, stamp, given, names, expected, force = unpack(ARGV, 5)
local final = {completed = true, failed = true, cancelled = true, rejected = true}
local stored = redis.call('HMGET', run, 'version', 'status', 'stamp')
local version = stored[1] or '0'
if (expected ~= '' and expected ~= version)
    or (force == '0' and stored[2] and final[stored[2]] and stored[2] ~= status) then
  return {0, version, stored[2]}
end
check()
local old = redis.call('HGET', facts, 'r' .. id)
if given == '0' and stored[3] then stamp = stored[3] end
version = redis.call('HINCRBY', run, 'version', 1)
redis.call('HSET', run, 'json', json, 'status', status, 'stamp', stamp, 'updated_at', micros)
local fact = stamp .. names
if fact ~= old then
  if old then
    local members, before = members_of(id, old)
    redis.call('ZREM', index, unpack(members))
    count('status:' .. before, -1)
  else
    count('runs', 1)
  end
  for _, member in ipairs(members_of(id, fact)) do redis.call('ZADD', index, 0, member) end
  count('status:' .. status, 1)
  redis.call('HSET', facts, 'r' .. id, fact)
end
touch('r' .. id)
publish()
return {1, version, micros, stamp}
"""
)

ADD_EVENTS: Final = Script(
    _RUN
    + r"""
local key = ARGV[5]
local last = redis.call('XLEN', events)
if key ~= '' then
  local seq = redis.call('HGET', keys, key)
  if seq then return {0, redis.call('XRANGE', events, seq, seq)[1]} end
end
if last == 0 then check() end
local n = #ARGV - 5
redis.call('HINCRBY', facts, 'e' .. id, n)
redis.call('HINCRBY', totals, 'events', n)
for place = 1, n do
  redis.call('XADD', events, string.format('%d', last + place) .. '-' .. micros, 'json', ARGV[5 + place])
end
if key ~= '' then redis.call('HSET', keys, key, last + 1) end
touch('r' .. id)
publish()
return {1, last + 1, micros}
"""
)

DELETE_RUN: Final = Script(
    _RUN
    + r"""
check()
local found = redis.call('EXISTS', run, events)
redis.call('UNLINK', run, events, keys)
forget('r' .. id)
publish()
return found
"""
)

SAVE_SESSION: Final = Script(
    _SESSION
    + r"""
local expected, state, extra, fields = unpack(ARGV, 3)
local version = redis.call('HGET', head, 'version') or '0'
if expected ~= '' and expected ~= version then return {0, version} end
redis.call('LLEN', messages)
check()
local before = redis.call('HGET', facts, 'm' .. id)
redis.call('DEL', messages)
local n = push(7)
if not before then count('sessions', 1) end
count('messages', n - (before or 0))
redis.call('HSET', facts, 'm' .. id, n)
version = redis.call('HINCRBY', head, 'version', 1)
redis.call('HSET', head, 'state', state, 'extra', extra, 'fields', fields, 'updated_at', micros)
touch('s' .. id)
return {1, version, micros}
"""
)

APPEND_MESSAGES: Final = Script(
    _SESSION
    + r"""
local change, state = ARGV[3], ARGV[4]
local known = redis.call('HEXISTS', head, 'version')
redis.call('LLEN', messages)
check()
local n = push(5)
local version = redis.call('HINCRBY', head, 'version', 1)
if known == 0 then redis.call('HSET', head, 'state', '', 'extra', '', 'fields', '') end
if change == '1' then redis.call('HSET', head, 'state', state) end
redis.call('HSET', head, 'updated_at', micros)
if redis.call('HEXISTS', facts, 'm' .. id) == 0 then count('sessions', 1) end
redis.call('HINCRBY', facts, 'm' .. id, n)
count('messages', n)
touch('s' .. id)
return redis.call('HMGET', head, 'version', 'updated_at', 'state', 'extra', 'fields')
"""
)

GET_SESSION: Final = Script(
    r"""
local stored = redis.call('HMGET', KEYS[1], 'version', 'updated_at', 'state', 'extra', 'fields')
stored[6] = table.concat(redis.call('LRANGE', KEYS[2], 0, -1), ',')
return stored
"""
)

DELETE_SESSION: Final = Script(
    _SESSION
    + r"""
check()
local found = redis.call('EXISTS', head)
redis.call('UNLINK', head, messages)
forget('s' .. id)
return found
"""
)

# The members between two bounds, each "[" or "(" and the end of a member, that every filter has: how
# many, the first of them, and where to go on if that was not all. A bound is compared by Redis and
# never by Lua, whose order of strings is the locale's.
FIND_RUNS: Final = Script(
    _CLOCK
    + r"""
local low, high, wanted, all = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local sets = {unpack(ARGV, 5)}
if sweep(500) then return {-1} end

local function at(set, bound)
  return string.sub(bound, 1, 1) .. set .. string.sub(bound, 2)
end

if #sets == 1 then
  local set = sets[1]
  local from, to = at(set, low), at(set, high)
  local found = {}
  if wanted > 0 then found = redis.call('ZRANGEBYLEX', index, from, to, 'LIMIT', 0, wanted) end
  for place, member in ipairs(found) do found[place] = string.sub(member, #set + 1) end
  return {all and redis.call('ZLEXCOUNT', index, from, to) or 0, found, ''}
end

local least, walked
for _, set in ipairs(sets) do
  local n = redis.call('ZLEXCOUNT', index, at(set, low), at(set, high))
  if not least or n < least then least, walked = n, set end
end
local matches, found, looked = 0, {}, 0
while true do
  local chunk = redis.call('ZRANGEBYLEX', index, at(walked, low), at(walked, high), 'LIMIT', 0, 200)
  local names = {}
  for place, member in ipairs(chunk) do names[place] = string.sub(member, #walked + 1) end
  if #names > 0 then low = '(' .. names[#names] end
  for _, set in ipairs(sets) do
    if set ~= walked and #names > 0 then
      local members, kept = {}, {}
      for place, name in ipairs(names) do members[place] = set .. name end
      for place, score in ipairs(redis.call('ZMSCORE', index, unpack(members))) do
        if score then kept[#kept + 1] = names[place] end
      end
      names = kept
    end
  end
  for _, name in ipairs(names) do
    if #found < wanted then found[#found + 1] = name end
  end
  matches = matches + #names
  looked = looked + #chunk
  if #chunk < 200 or (not all and #found >= wanted) then return {matches, found, ''} end
  if looked >= 5000 then return {matches, found, low} end
end
"""
)

STATS: Final = Script(
    _CLOCK
    + r"""
if sweep(500) then return -1 end
return redis.call('HGETALL', totals)
"""
)

TIDY: Final = Script(
    _CLOCK
    + r"""
if sweep(500) then return -1 end
if redis.call('EXISTS', expiries) == 0 then redis.call('UNLINK', index, facts, totals) end
return 0
"""
)
