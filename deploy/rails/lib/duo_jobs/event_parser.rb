# frozen_string_literal: true

require "json"

module DuoJobs
  # One event of a job: `type` is "state", "text", "restart" or "end"; `id` is the place in the answer that it reaches.
  Event = Struct.new(:type, :id, :data) do
    # What comes next, of a "text".
    def text = data["text"]

    # The job, of a "state" or an "end".
    def job = %w[state end].include?(type) ? Job.new(data) : nil

    # Forget the text so far: it begins anew.
    def restart? = type == "restart"

    def end? = type == "end"
  end

  # Takes a stream of server-sent events apart, in whatever pieces it comes. What has no empty line after it is no event.
  class EventParser
    # Longest event: a result has no more than this.
    MAX_EVENT = 32 * 1024 * 1024

    def initialize
      @rest = String.new(encoding: Encoding::BINARY)
      @looked = 0
      begin_event
    end

    # Gives the events that `piece` completes.
    def feed(piece)
      @rest << piece
      while (line = next_line)
        take(line) { |event| yield event }
      end
      raise Broken, "an event has more than #{MAX_EVENT} bytes" if @rest.bytesize + @size > MAX_EVENT
    end

    # The stream is no stream of events.
    class Broken < StandardError; end

    private

    # A line ends with \n or \r\n, as the gateway and every proxy write them.
    def next_line
      at = @rest.index("\n", @looked)
      unless at
        @looked = @rest.bytesize
        return
      end
      @looked = 0
      @rest.slice!(0..at).chomp
    end

    def take(line)
      return finish { |event| yield event } if line.empty?

      name, value = line.split(":", 2)
      value = value.to_s.delete_prefix(" ").force_encoding(Encoding::UTF_8)
      case name
      when "event" then @type = value
      when "id" then @id = value
      when "data"
        @data << value
        @size += value.bytesize
      end
    end

    def finish
      type, id, data = @type, @id, @data
      begin_event
      yield Event.new(type, id, parsed(data)) unless data.empty?
    end

    def parsed(data)
      JSON.parse(data.join("\n"))
    rescue JSON::ParserError
      raise Broken, "the data of an event is no JSON"
    end

    def begin_event
      @type = "message"
      @id = nil
      @data = []
      @size = 0
    end
  end
end
