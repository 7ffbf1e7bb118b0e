-- POST the bodies of a file, one a line, in order; wrk -s closed_loop.lua URL -- FILE [NAME VALUE]...
-- Global names are what wrk lets one read from a thread afterwards.
local requests = {}
local thread_of_load
sent, bodies = 0, 0

function setup(thread)
  thread_of_load = thread
end

function init(arguments)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  for i = 2, #arguments, 2 do
    wrk.headers[arguments[i]] = arguments[i + 1]
  end
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format(nil, nil, nil, line)
  end
  bodies = #requests
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % bodies + 1]
end

function done(summary, latency)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout -- wrk does not count them
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d, "sent": %d, "bodies": %d}\n',
    summary.requests + broken, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    errors.status + broken,
    thread_of_load:get("sent"), thread_of_load:get("bodies")))
end
