# frozen_string_literal: true

require "json"
require "openssl"

module DuoJobs
  # Webhooks of the gateway, signed by the scheme of Standard Webhooks.
  module Webhook
    # Seconds that the sender's clock and one's own may differ, and that a delivery may take.
    TOLERANCE = 300
    # What a secret begins with; the rest is base64.
    PREFIX = "whsec_"
    # Shortest key that the scheme allows, in bytes.
    MIN_KEY = 24

    # What happened. `id` is the same for every delivery of it: who has seen it once need not look again.
    Event = Struct.new(:id, :type, :timestamp, :data) do
      # The job it is about; ask the gateway for its result.
      def job_id = data["id"]
    end

    module_function

    # Checks a delivery and gives its Event, else raises WebhookRefused.
    #
    # `body`: the bytes as they came, before anything parsed them (Rails: `request.raw_post`). `headers`: Rails' `request.headers`, a
    # Rack environment, or a Hash with names in whatever case. `secrets`: one, or several while they are changed.
    def verify(body, headers, secrets, tolerance: TOLERANCE, now: Time.now)
      keys = Array(secrets).map { |secret| key(secret) }
      raise ArgumentError, "no secret is given to check webhooks with" if keys.empty?

      id, timestamp, signatures = %w[webhook-id webhook-timestamp webhook-signature].map { |name| header(headers, name) }
      check_time(timestamp, tolerance, now)
      signed = "#{id}.#{timestamp}.".b + body.to_s.b
      unless genuine?(signed, signatures, keys)
        raise WebhookRefused.new(:signature, "no signature fits: the secret is another one, or the body was changed on its way")
      end

      event(id, body)
    end

    # The key of a secret.
    def key(secret)
      key = secret.to_s.strip.delete_prefix(PREFIX).unpack1("m0")
      raise ArgumentError, "a webhook secret has at least #{MIN_KEY} bytes" if key.bytesize < MIN_KEY

      key
    rescue ArgumentError => error
      # Never with the secret itself.
      raise ArgumentError, "a webhook secret is #{PREFIX} and base64 as the gateway showed it: #{error.message}", cause: nil
    end

    def header(headers, name)
      value = [name, "HTTP_#{name.upcase.tr("-", "_")}"].lazy.filter_map { |known| headers[known] }.first
      # A Hash may have them in any case.
      value ||= headers.to_h.find { |known, _| known.to_s.casecmp?(name) }&.last if headers.is_a?(Hash)
      value = Array(value).first.to_s
      raise WebhookRefused.new(:missing_header, "the header #{name} is missing") if value.empty?

      value
    end

    def check_time(timestamp, tolerance, now)
      unless timestamp.match?(/\A\d{1,12}\z/)
        raise WebhookRefused.new(:timestamp, "webhook-timestamp is no number of seconds")
      end
      return if (now.to_i - timestamp.to_i).abs <= tolerance

      raise WebhookRefused.new(:timestamp, "the delivery is more than #{tolerance} s old or ahead: an old one is sent again, " \
                                           "or a clock is wrong")
    end

    # Whether one of the signatures is by one of the keys. The time it takes says nothing about how much of one fits.
    def genuine?(signed, signatures, keys)
      given = signatures.split.filter_map { |one| one.delete_prefix("v1,").unpack1("m") if one.start_with?("v1,") }
      expected = keys.map { |key| OpenSSL::HMAC.digest("SHA256", key, signed) }
      expected.product(given).count { |ours, theirs| OpenSSL.secure_compare(ours, theirs) }.positive?
    end

    def event(id, body)
      fields = JSON.parse(body.to_s.dup.force_encoding(Encoding::UTF_8))
      type, timestamp, data = fields.values_at("type", "timestamp", "data") if fields.is_a?(Hash)
      return Event.new(id, type, timestamp, data) if type.is_a?(String) && data.is_a?(Hash)

      raise JSON::ParserError
    rescue JSON::ParserError
      raise WebhookRefused.new(:malformed, "the body is signed, but no event with type, timestamp and data")
    end

    private_class_method :key, :header, :check_time, :genuine?, :event
  end
end
