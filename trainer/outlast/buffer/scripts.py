"""The gradient log's Lua: everything that must happen at once happens in one of these.

Rules
- Whatever a server does is guarded by (epoch, run): a higher recorded epoch fences it; another run of Redis than the
  one its epoch was claimed in makes it claim again first.
- Offsets are given once, in every shard at the same time, and only grow; after a restart they jump (RUN_JUMP).
- Values are uploaded with an expiry and made permanent by the script that refers to them: what no script ever refers
  to disappears by itself.
- A server's scripts first delete a key that never exists: Redis lets a script that has written go on although memory
  is full, and trimming, recording and fencing are what makes room.

Keys, under `outlast:{<job uid>}:` (one hash slot; scripts derive names from the prefix)
  log               hash    next, bytes, peak, closed, paused, run, history, claims
  fence             hash    slot -> the lowest incarnation that may append
  admitted          hash    slot -> "bytes:until": uploads under way, counted against maxBytes
  live:S            zset    "first:last:offset" by first: identities in the log           width: hash, widest by slot
  gone:S            zset    "first:last" by first: identities that were applied and trimmed, merged   slots: set
  pending           hash    offset -> "shards that still hold it:history of the first trim"
  shard:N           hash    epoch, run, dirty, history, trimmed, snap, snap_id, snap_seq, snap_offset, snap_history
  shard:N:log       stream  <offset>-1 -> m: the manifest        shard:N:records   stream  <seq>-1 -> r
  c:PUSH:N:I        string  a gradient's chunk                   snap:N:ID:T:I     string  a snapshot's chunk
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from outlast.buffer.types import RUN_JUMP


@dataclass(frozen=True)
class Script:
    text: str

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode()).hexdigest()  # Redis names scripts so; nothing here is a secret


_COMMON = """
local P = KEYS[1]
local call = redis.call
local function int(x) return string.format('%.0f', x) end
local function num(x) return tonumber(x or '0') end

local function drop_gone()
  for _, slot in ipairs(call('SMEMBERS', P .. 'slots')) do call('DEL', P .. 'gone:' .. slot) end
end

-- A rollback makes what was applied and trimmed before it unapplied: it must not pass for a duplicate.
local function see_history(history)
  if history > num(call('HGET', P .. 'log', 'history')) then
    drop_gone()
    call('HSET', P .. 'log', 'history', int(history), 'closed', '0')  -- an end that was rolled back was none
  end
end
"""

_GUARD = (
    _COMMON
    + """
call('DEL', P .. 'none')
local shard = P .. 'shard:' .. ARGV[1]
local epoch, run = tonumber(ARGV[2]), ARGV[3]
local held = call('HMGET', shard, 'epoch', 'run')
if held[1] and tonumber(held[1]) > epoch then return {'fenced', held[1]} end
if not held[1] or tonumber(held[1]) < epoch or held[2] ~= run then return {'unclaimed', held[1] or ''} end

-- Gradients of a newer history are here: a rollback is recorded and this server has not heard. What it did is undone.
local function outdated()
  return num(call('HGET', shard, 'history')) < num(call('HGET', P .. 'log', 'history'))
end
"""
)

# ARGV: mode (admit|commit), slot, incarnation, history, first, last, cost, max bytes, shards, run, ttl ms, push,
# then, for commit, a shard: chunks, manifest. -> {result, offset}
APPEND = Script(
    _COMMON
    + f"local JUMP = {RUN_JUMP}"
    + """
local mode, slot, incarnation, history = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local first, last, cost, max = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local shards, run, ttl, push = tonumber(ARGV[9]), ARGV[10], tonumber(ARGV[11]), ARGV[12]
local now = call('TIME')
now = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)

local function chunk(s, i) return P .. 'c:' .. push .. ':' .. int(s) .. ':' .. int(i) end

local function refuse(result)
  call('HDEL', P .. 'admitted', slot)
  if mode == 'commit' then
    for s = 0, shards - 1 do
      for i = 0, tonumber(ARGV[13 + 2 * s]) - 1 do call('UNLINK', chunk(s, i)) end
    end
  end
  return {result, '0'}
end

-- Is every step of the interval in the log, or was it?
local function covered()
  local pos = first
  local width = num(call('HGET', P .. 'width', slot))
  while pos <= last do
    local best = pos - 1
    if width > 0 then
      for _, m in ipairs(call('ZRANGEBYSCORE', P .. 'live:' .. slot, int(pos - width + 1), int(pos))) do
        best = math.max(best, tonumber(string.match(m, '^%d+:(%d+)')))
      end
    end
    if best < pos then
      local m = call('ZREVRANGEBYSCORE', P .. 'gone:' .. slot, int(pos), '-inf', 'LIMIT', '0', '1')[1]
      if m then best = math.max(best, tonumber(string.match(m, '^%d+:(%d+)'))) end
    end
    if best < pos then return false end
    pos = best + 1
  end
  return true
end

local log = call('HMGET', P .. 'log', 'claims', 'closed', 'bytes', 'run', 'peak')
if num(log[1]) < shards then return refuse('unclaimed') end
local fence = num(call('HGET', P .. 'fence', slot))
if incarnation < fence then return refuse('fenced') end
if incarnation > fence then call('HSET', P .. 'fence', slot, int(incarnation)) end
see_history(history)
if covered() then return refuse('duplicate') end
if call('HGET', P .. 'log', 'closed') == '1' then return refuse('closed') end
if call('HGET', P .. 'log', 'paused') == '1' then return refuse('paused') end

local bytes = num(log[3]) + cost
local under_way = 0
for _, held in ipairs(mode == 'admit' and call('HGETALL', P .. 'admitted') or {}) do
  local n, till = string.match(held, '^(%d+):(%d+)$')
  if n and tonumber(till) > now then under_way = under_way + tonumber(n) end
end
local own = call('HGET', P .. 'admitted', slot)
if own and mode == 'admit' then
  local n, till = string.match(own, '^(%d+):(%d+)$')
  if tonumber(till) > now then under_way = under_way - tonumber(n) end
end
if bytes + under_way > max then return refuse('full') end
if mode == 'admit' then
  call('HSET', P .. 'admitted', slot, int(cost) .. ':' .. int(now + ttl))
  return {'ok', '0'}
end

for s = 0, shards - 1 do
  for i = 0, tonumber(ARGV[13 + 2 * s]) - 1 do
    if call('PERSIST', chunk(s, i)) == 0 then return refuse('missing') end
  end
end
if log[4] ~= run then
  if log[4] then call('HINCRBY', P .. 'log', 'next', int(JUMP)) end
  call('HSET', P .. 'log', 'run', run)
end
local offset = int(call('HINCRBY', P .. 'log', 'next', 1))
call('HSET', P .. 'log', 'bytes', int(bytes), 'peak', int(math.max(bytes, num(log[5]))))
call('SADD', P .. 'slots', slot)
call('ZADD', P .. 'live:' .. slot, int(first), int(first) .. ':' .. int(last) .. ':' .. offset)
if last - first + 1 > num(call('HGET', P .. 'width', slot)) then
  call('HSET', P .. 'width', slot, int(last - first + 1))
end
call('HSET', P .. 'pending', offset, int(shards) .. ':')
for s = 0, shards - 1 do
  call('XADD', P .. 'shard:' .. int(s) .. ':log', offset .. '-1', 'm', ARGV[14 + 2 * s])
end
call('HDEL', P .. 'admitted', slot)
return {'ok', offset}
"""
)

# ARGV: shard, epoch, run, history, offset -> {result, recorded epoch}
CLAIM = Script(
    _COMMON
    + """
call('DEL', P .. 'none')
local shard = P .. 'shard:' .. ARGV[1]
local epoch, run, history, offset = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local held = call('HMGET', shard, 'epoch', 'run', 'history')
if held[1] and tonumber(held[1]) > epoch then return {'fenced', held[1]} end
if not held[1] then
  call('HINCRBY', P .. 'log', 'claims', 1)
elseif held[2] ~= run then
  call('HSET', shard, 'dirty', '1')
end
see_history(history)
if held[3] and history > tonumber(held[3]) then
  call('DEL', shard .. ':records')  -- of a past that the recorded view has given up
  call('HSET', shard, 'dirty', '1')
end
call('HSET', shard, 'epoch', int(epoch), 'run', run, 'history', int(math.max(history, num(held[3]))))
if offset > num(call('HGET', P .. 'log', 'next')) then call('HSET', P .. 'log', 'next', int(offset)) end
return {'ok', int(epoch)}
"""
)

# ARGV: shard, epoch, run, seq, text -> {result, last seq}
RECORD = Script(
    _GUARD
    + """
local seq, text = tonumber(ARGV[4]), ARGV[5]
local state = call('HMGET', shard, 'snap_id', 'dirty')
if not state[1] or state[2] == '1' then return {'unbased', ''} end
local newest = call('XREVRANGE', shard .. ':records', '+', '-', 'COUNT', '1')[1]
if newest then
  local at = tonumber(string.match(newest[1], '^%d+'))
  if at >= seq then
    local same = call('XRANGE', shard .. ':records', int(seq) .. '-1', int(seq) .. '-1')[1]
    if same and same[2][2] == text then return {'ok', int(at)} end
    return {'disorder', int(at)}
  end
end
call('XADD', shard .. ':records', int(seq) .. '-1', 'r', text)
return {'ok', int(seq)}
"""
)

# ARGV: shard, epoch, run, id, seq, offset, history, index (JSON), upload's chunks a tensor... -> {result, id}
FLIP = Script(
    _GUARD
    + """
local id, seq, offset, history = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local base = P .. 'snap:' .. ARGV[1] .. ':'
local old = call('HMGET', shard, 'snap_id', 'snap_seq', 'snap_offset', 'snap_history', 'snap')
if old[1] == id then return {'ok', id} end
if old[1] and (tonumber(old[4]) > history or (tonumber(old[4]) == history
    and (tonumber(old[2]) > seq or tonumber(old[3]) > offset))) then
  return {'stale', old[1]}
end
for t = 9, #ARGV do
  for i = 0, tonumber(ARGV[t]) - 1 do
    if call('PERSIST', base .. id .. ':' .. int(t - 9) .. ':' .. int(i)) == 0 then return {'missing', id} end
  end
end
call('HSET', shard, 'snap', ARGV[8], 'snap_id', id, 'snap_seq', int(seq), 'snap_offset', int(offset),
  'snap_history', int(history), 'dirty', '0')
if old[1] then
  for t, tensor in ipairs(cjson.decode(old[5]).tensors) do
    for i = 0, tensor.chunks - 1 do call('UNLINK', base .. old[1] .. ':' .. int(t - 1) .. ':' .. int(i)) end
  end
end
call('XTRIM', shard .. ':records', 'MINID', int(seq + 1) .. '-0')
return {'ok', id}
"""
)

# ARGV: shard, epoch, run, offset, entries at most -> {result, more (0|1), entries removed}
TRIM = Script(
    _GUARD
    + """
if outdated() then return {'ok', '0', '0'} end
local state = call('HMGET', shard, 'trimmed', 'snap_offset')
local offset, limit = tonumber(ARGV[4]), tonumber(ARGV[5])
if state[2] then offset = math.min(offset, tonumber(state[2])) end  -- a rebuild starts from the snapshot

local function forget(slot, first, last)  -- into the merged intervals of what was applied
  local key = P .. 'gone:' .. slot
  while true do
    local m = call('ZREVRANGEBYSCORE', key, int(last + 1), '-inf', 'LIMIT', '0', '1')[1]
    if not m then break end
    local a, b = string.match(m, '^(%d+):(%d+)$')
    if tonumber(b) < first - 1 then break end
    call('ZREM', key, m)
    first, last = math.min(first, tonumber(a)), math.max(last, tonumber(b))
  end
  call('ZADD', key, int(first), int(first) .. ':' .. int(last))
end

local history = int(num(call('HGET', P .. 'log', 'history')))
local entries = call('XRANGE', shard .. ':log', '-', int(offset), 'COUNT', int(limit))
local freed = 0
for _, entry in ipairs(entries) do
  local m = cjson.decode(entry[2][2])
  local at, slot = string.match(entry[1], '^%d+'), int(m.slot)
  for i = 0, m.chunks - 1 do call('UNLINK', P .. 'c:' .. m.push .. ':' .. ARGV[1] .. ':' .. int(i)) end
  freed = freed + m.cost
  local left, since = string.match(call('HGET', P .. 'pending', at) or '1:', '^(%d+):(.*)$')
  if since == '' then since = history end
  if since ~= history then since = 'x' end  -- trimmed on both sides of a rollback: not known to be applied
  left = tonumber(left) - 1
  if left > 0 then
    call('HSET', P .. 'pending', at, int(left) .. ':' .. since)
  else
    call('HDEL', P .. 'pending', at)
    call('ZREM', P .. 'live:' .. slot, int(m.first) .. ':' .. int(m.last) .. ':' .. at)
    if since == history then forget(slot, m.first, m.last) end
  end
  call('XDEL', shard .. ':log', entry[1])
end
if freed > 0 then call('HINCRBY', P .. 'log', 'bytes', int(-freed)) end
if #entries == limit then return {'ok', '1', int(#entries)} end
if offset > num(state[1]) then call('HSET', shard, 'trimmed', int(offset)) end
return {'ok', '0', int(#entries)}
"""
)

# ARGV: shard, epoch, run -> {result}: no appends until a higher history is claimed
CLOSE = Script(
    _GUARD
    + """
if outdated() then return {'fenced', held[1]} end
call('HSET', P .. 'log', 'closed', '1')
return {'ok'}
"""
)

# ARGV: slot, incarnation -> the lowest incarnation that may append
FENCE = Script(
    _COMMON
    + """
call('DEL', P .. 'none')
local held = num(call('HGET', P .. 'fence', ARGV[1]))
if tonumber(ARGV[2]) > held then held = tonumber(ARGV[2]) call('HSET', P .. 'fence', ARGV[1], int(held)) end
return int(held)
"""
)

# ARGV: slot -> the highest step that is or was in the log (0: none)
HIGHEST = Script(
    _COMMON
    + """
local best, width = 0, num(call('HGET', P .. 'width', ARGV[1]))
for _, key in ipairs({'live:', 'gone:'}) do
  local top = call('ZREVRANGE', P .. key .. ARGV[1], '0', '0', 'WITHSCORES')
  if top[2] then
    for _, m in ipairs(call('ZRANGEBYSCORE', P .. key .. ARGV[1], int(tonumber(top[2]) - width), '+inf')) do
      best = math.max(best, tonumber(string.match(m, '^%d+:(%d+)')))
    end
  end
end
return int(best)
"""
)

ALL = (APPEND, CLAIM, RECORD, FLIP, TRIM, CLOSE, FENCE, HIGHEST)
