# frozen_string_literal: true

require "helper"

class EventParserTest < Minitest::Test
  def parse(*pieces)
    parser = DuoJobs::EventParser.new
    events = []
    pieces.each { |piece| parser.feed(piece.b) { |event| events << event.to_a } }
    events
  end

  def test_however_it_is_cut
    text = ": waiting\n\nevent: text\nid: 1-3\ndata: {\"text\": \"größer\"}\n\nevent:end\r\ndata:{\"id\":\r\ndata: \"x\"}\r\n\r\n"
    whole = parse(text)
    assert_equal [["text", "1-3", { "text" => "größer" }], ["end", nil, { "id" => "x" }]], whole
    assert_equal whole, parse(*text.b.chars)
  end

  def test_what_is_not_complete_is_no_event
    assert_empty parse("event: text\ndata: {\"text\": \"a\"}\n")
    assert_empty parse("event: text\nid: 1\n\n")
  end

  def test_an_id_is_its_events_alone
    assert_equal [["text", "1", {}], ["restart", nil, {}]], parse("event: text\nid: 1\ndata: {}\n\nevent: restart\ndata: {}\n\n")
  end

  def test_a_stream_of_something_else
    assert_raises(DuoJobs::EventParser::Broken) { parse("data: <html>\n\n") }
    endless = ["x" * (1 << 20)] * 33
    assert_raises(DuoJobs::EventParser::Broken) { parse(*endless) }
    assert_raises(DuoJobs::EventParser::Broken) { parse(*endless.map { |line| "data: #{line}\n" }) }
  end
end
