# frozen_string_literal: true

require "helper"

class ClientTest < Minitest::Test
  JOB = { "id" => "01a2", "object" => "job", "state" => "queued" }.freeze
  DONE = JOB.merge("state" => "succeeded", "result" => { "text" => "Blue." }).freeze

  # Runs the block against a gateway that gives these answers, and checks that it was asked for all of them.
  def with(*answers, **options)
    gateway = FakeGateway.new(*answers)
    @client = QuickClient.new(url: gateway.url, token: "secret", **options)
    given = yield @client
    gateway.finish
    @requests = gateway.requests
    given
  end

  def json(...) = FakeGateway.json(...)
  def accepted(**headers) = json(202, JOB, headers)

  def refusal(status, code, headers = {}, **more)
    json(status, { "error" => code, "message" => "in words" }.merge(more.transform_keys(&:to_s)), headers)
  end

  def submit(client, key = "k1", **more) = client.submit(feature: "openai_chat", input: "why?", idempotency_key: key, **more)

  def raises(kind, ...)
    assert_raises(kind) { with(...) }
  end

  # Submissions

  def test_a_submission
    job = with(accepted) { |client| submit(client, 'a "b" \\', metadata: { issue: "42" }) }
    assert_equal ["01a2", "queued", false, false], [job.id, job.state, job.over?, job.replayed?]
    asked = @requests.first
    assert_equal ["POST", "/v1/jobs", "Bearer secret"], [asked.method, asked.path, asked.headers["authorization"]]
    assert_equal ['"a \\"b\\" \\\\"', "application/json"], asked.headers.values_at("idempotency-key", "content-type")
    assert_equal({ "feature" => "openai_chat", "input" => "why?", "metadata" => { "issue" => "42" } }, JSON.parse(asked.body))
  end

  def test_tokens_and_headers_are_asked_for_each_time
    count = 0
    headers = -> { { "X-Gitlab-Instance-Id" => "i#{count}" } }
    with(json(200, JOB), json(200, JOB), token: -> { "t#{count += 1}" }, headers: headers) do |client|
      2.times { client.find("01a2") }
    end
    assert_equal [["Bearer t1", "i1"], ["Bearer t2", "i2"]],
                 @requests.map { |asked| asked.headers.values_at("authorization", "x-gitlab-instance-id") }
  end

  def test_deadlines_as_rails_has_them
    moment = Time.utc(2026, 11, 29, 12)
    duration = Struct.new(:to_i).new(600)
    with(*[accepted] * 3) { |client| [moment, duration, 60].each { |deadline| submit(client, deadline: deadline) } }
    assert_equal ["2026-11-29T12:00:00Z", 600, 60], @requests.map { |asked| JSON.parse(asked.body)["deadline"] }
  end

  def test_with_a_key_it_is_tried_until_it_goes_well
    job = with(:reset, refusal(409, "idempotency_key_in_use", { "Retry-After" => "1" }),
               refusal(503, "database_unavailable", { "Retry-After" => "2" }), refusal(503, "audit_unavailable"),
               refusal(429, "too_many_jobs", { "Retry-After" => "3" }), "HTTP/1.1 202 Acc",
               accepted("Idempotency-Replayed" => "true")) { |client| submit(client) }
    assert job.replayed?
    assert_equal [1, 2, 3], @client.rests.values_at(1, 2, 4)
    assert_equal 1, @requests.map(&:body).uniq.size
    assert_equal ['"k1"'], @requests.map { |asked| asked.headers["idempotency-key"] }.uniq
  end

  def test_without_a_key_only_where_nothing_can_have_been_stored
    raises(DuoJobs::ConnectionFailed, :reset) { |client| submit(client, nil) }
    raises(DuoJobs::Unavailable, refusal(503, "database_unavailable", { "Retry-After" => "1" })) { |client| submit(client, nil) }
    with(refusal(429, "too_many_jobs", { "Retry-After" => "1" }), accepted) { |client| submit(client, nil) }
    refute @requests.last.headers.key?("idempotency-key")
  end

  def test_a_gateway_that_is_not_there_is_tried_too
    server = TCPServer.new("127.0.0.1", 0)
    port = server.addr[1]
    server.close
    client = QuickClient.new(url: "http://127.0.0.1:#{port}")
    assert_raises(DuoJobs::ConnectionFailed) { submit(client, nil) }
    assert_operator client.rests.size, :>, 3
    assert_operator client.rests.sum, :<=, 20
  end

  def test_it_does_not_wait_longer_than_it_may
    error = raises(DuoJobs::TooManyJobs, refusal(429, "too_many_jobs", { "Retry-After" => "30" })) { |client| submit(client) }
    assert_equal [30, 429, "too_many_jobs"], [error.retry_after, error.status, error.code]
    assert_empty @client.rests
    at = (Time.now + 100).httpdate
    error = raises(DuoJobs::Unavailable, refusal(503, "x", { "Retry-After" => at })) { |client| submit(client) }
    assert_in_delta 100, error.retry_after, 2
  end

  def test_errors_say_what_to_do_and_are_not_repeated
    problems = [{ "field" => "model", "problem" => "there is no such model" }]
    error = raises(DuoJobs::InvalidRequest, refusal(422, "invalid_request", problems: problems)) { |client| submit(client) }
    assert_includes error.message, "model: there is no such model"
    assert_equal problems, error.problems
    {
      [422, "idempotency_key_reused"] => DuoJobs::KeyReused, [400, "malformed_json"] => DuoJobs::InvalidRequest,
      [401, "x"] => DuoJobs::Unauthorized, [403, "x"] => DuoJobs::Forbidden, [404, "not_found"] => DuoJobs::NotFound,
      [410, "job_expired"] => DuoJobs::Gone, [418, "x"] => DuoJobs::UnexpectedAnswer
    }.each do |(status, code), kind|
      error = raises(kind, refusal(status, code)) { |client| submit(client) }
      assert_instance_of kind, error
      assert_kind_of DuoJobs::PermanentError, error
      refute_includes error.message, "secret"
    end
    gone = raises(DuoJobs::ResultGone, refusal(410, "result_expired", job: DONE)) { |client| client.find("01a2") }
    assert_equal "succeeded", gone.job.state
  end

  def test_an_answer_that_is_no_gateways
    raises(DuoJobs::UnexpectedAnswer, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>") { |client| client.find("01a2") }
    error = raises(DuoJobs::Unavailable, *["HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"] * 2, retry_for: 0.2) do |client|
      client.find("01a2")
    end
    assert_equal 502, error.status
  end

  def test_a_gateway_that_says_nothing_is_not_waited_for
    asked = Queue.new
    began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
    raises(DuoJobs::ConnectionFailed, ->(_) { asked.pop }, timeout: 0.2, retry_for: 0) do |client|
      client.find("01a2")
    ensure
      asked << true
    end
    assert_operator Process.clock_gettime(Process::CLOCK_MONOTONIC) - began, :<, 5
  end

  # Looking

  def test_find_list_and_cancel
    with(json(200, DONE), json(200, { "jobs" => [DONE, JOB], "next_cursor" => "c2" }), json(200, JOB)) do |client|
      assert_equal "Blue.", client.find("01a2").text
      page = client.list(state: "queued", limit: 2, cursor: "c 1")
      assert_equal [%w[succeeded queued], "c2"], [page.map(&:state), page.next_cursor]
      client.cancel("a/b?")
    end
    assert_equal [["GET", "/v1/jobs/01a2"], ["GET", "/v1/jobs?state=queued&limit=2&cursor=c+1"], ["DELETE", "/v1/jobs/a%2Fb%3F"]],
                 @requests.map { |asked| [asked.method, asked.path] }
    assert_raises(ArgumentError) { @client.find(nil) }
  end

  def test_wait_looks_less_and_less_often
    job = with(*[json(200, JOB)] * 12, refusal(503, "x"), json(200, DONE)) { |client| client.wait("01a2", timeout: 600) }
    assert_equal "Blue.", job.result!["text"]
    assert_operator @client.rests.first, :<, 0.3
    assert_operator @client.rests[11], :>, 7
    assert_operator @client.rests.max, :<=, 12
  end

  def test_wait_ends_in_time_and_knows_how_far_the_job_is
    gateway = FakeGateway.new(*[json(200, JOB)] * 50)
    client = QuickClient.new(url: gateway.url)
    error = assert_raises(DuoJobs::StillWorking) { client.wait("01a2", timeout: 30) }
    assert_equal "queued", error.job.state
    assert_in_delta 30, client.rests.sum, 1
  end

  def test_a_job_without_a_result_says_why
    dead = DuoJobs::Job.new(JOB.merge("state" => "dead", "error" => { "code" => "overloaded", "message" => "five times" }))
    error = assert_raises(DuoJobs::JobFailed) { dead.result! }
    assert_includes error.message, "dead: overloaded: five times"
    assert_raises(DuoJobs::StillWorking) { DuoJobs::Job.new(JOB).result! }
  end

  # Events

  STATE = "event: state\ndata: #{JSON.generate(JOB)}\n\n"
  ENDED = "event: end\ndata: #{JSON.generate(DONE)}\n\n"

  def text(id, text) = "event: text\nid: #{id}\ndata: #{JSON.generate("text" => text)}\n\n"
  def events(...) = FakeGateway.events(...)

  def follow(client, **options)
    said = +""
    job = client.each_event("01a2", **options) do |event|
      said.clear if event.restart?
      said << event.text if event.type == "text"
    end
    [said, job]
  end

  def test_broken_streams_go_on_from_the_last_event
    said, job = with(events("#{STATE}#{text("1-2", "Bl")}event: text\nid: 1-3\ndata: {\"te"), :reset, refusal(503, "queue_unavailable"),
                     events("#{text("1-4", "u€")}: waiting\n\n", chunked: false),
                     events(text("1-5", ".") + ENDED)) { |client| follow(client) }
    assert_equal ["Blu€.", "Blue."], [said, job.text]
    assert_equal [nil, "1-2", "1-2", "1-2", "1-4"], @requests.map { |asked| asked.headers["last-event-id"] }
    assert_equal ["/v1/jobs/01a2/events"], @requests.map(&:path).uniq
  end

  def test_it_goes_on_where_one_left_it
    given = with(events(text("1-9", "rest") + ENDED)) { |client| follow(client, after: "1-5").first }
    assert_equal ["rest", "1-5"], [given, @requests.first.headers["last-event-id"]]
  end

  def test_a_restart_forgets_the_text
    said, = with(events("#{text("1-1", "a")}event: restart\ndata: {\"run\": 2}\n\n#{text("2-1", "b")}#{ENDED}")) { |client| follow(client) }
    assert_equal "b", said
  end

  def test_one_may_leave_at_any_time
    event = with(events(STATE + text("1-1", "a") + ENDED)) do |client|
      client.each_event("01a2").find { |one| one.type == "text" }
    end
    assert_equal "a", event.text
  end

  def test_what_the_block_raises_is_no_trouble_of_the_connection
    [Errno::ECONNRESET, Timeout::Error, StopIteration, DuoJobs::Unavailable].each do |kind|
      error = raises(kind, events(STATE + ENDED)) { |client| client.each_event("01a2") { raise kind, "mine" } }
      assert_includes error.message, "mine"
      assert_includes error.backtrace.first, "client_test.rb"
    end
  end

  def test_a_stream_that_never_comes_is_given_up
    gateway = FakeGateway.new(*[events(STATE)] * 50)
    client = QuickClient.new(url: gateway.url)
    assert_raises(DuoJobs::ConnectionFailed) { client.each_event("01a2") {} }
    # The pause that would have gone too far is the longest at most.
    assert_includes (20 - DuoJobs::Client::BACKOFF.end - 1)..20, client.rests.sum
    raises(DuoJobs::NotFound, refusal(404, "not_found")) { |one| one.each_event("01a2") {} }
    raises(DuoJobs::UnexpectedAnswer, *[events("data: <html>\n\n")] * 2, retry_for: 0.2) { |one| one.each_event("01a2") {} }
  end

  def test_a_page_instead_of_a_stream_is_not_asked_for_again
    page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"
    raises(DuoJobs::UnexpectedAnswer, page) { |client| client.each_event("01a2") {} }
    assert_empty @client.rests
  end

  def test_a_job_that_takes_longer_can_be_followed_later
    hold = Queue.new
    stream = ->(socket) { socket.write(events(STATE + text("1-1", "a"), chunked: false)) && hold.pop }
    error = raises(DuoJobs::StillWorking, stream) do |client|
      client.each_event("01a2", timeout: 0.5) {}
    ensure
      hold << true
    end
    assert_equal ["1-1", "queued"], [error.last_event_id, error.job.state]
  end

  # The gem

  def test_the_gem_holds_what_it_needs
    Dir.chdir(File.expand_path("..", __dir__)) do
      spec = Gem::Specification.load("duo_jobs.gemspec")
      assert_equal DuoJobs::VERSION, spec.version.to_s
      assert_empty spec.dependencies
      assert_equal Dir["lib/**/*.rb"].sort, spec.files.grep(/\Alib/).sort
      spec.files.each { |file| assert File.file?(file), file }
    end
  end
end
