# frozen_string_literal: true

require "helper"

class WebhookTest < Minitest::Test
  # Signatures by `openssl dgst -sha256 -mac HMAC -macopt hexkey:KEY -binary | base64` over "msg_1.1790000000." and BODY.
  BODY = '{"type":"job.succeeded","timestamp":"2026-09-21T14:13:20Z","data":{"id":"01a2b3c4-0000-7000-8000-000000000001"}}'
  OLD = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
  NEW = "whsec_/v79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA="
  BY_OLD = "v1,patFp0moQkVrp85swSx7zEFcAxR9bER5C3emC782lNs="
  BY_NEW = "v1,46pn+gRYDD9e7uoyDJg2ss4zzpvqkIIhveEMoexp/qA="
  AT = Time.at(1_790_000_000)

  def headers(signature, **changed)
    { "Webhook-Id" => "msg_1", "Webhook-Timestamp" => "1790000000", "Webhook-Signature" => signature }.merge(changed)
  end

  def verify(headers, secrets, body: BODY, now: AT)
    DuoJobs::Webhook.verify(body, headers, secrets, now: now)
  end

  def refused(reason, ...)
    assert_equal reason, assert_raises(DuoJobs::WebhookRefused) { verify(...) }.reason
  end

  def test_a_genuine_one_is_an_event
    event = verify(headers(BY_OLD), OLD)
    assert_equal ["msg_1", "job.succeeded", "01a2b3c4-0000-7000-8000-000000000001"], [event.id, event.type, event.job_id]
    assert_equal "2026-09-21T14:13:20Z", event.timestamp
  end

  def test_while_secrets_change_one_fitting_pair_is_enough
    assert verify(headers("#{BY_NEW} #{BY_OLD}"), OLD)
    assert verify(headers(BY_NEW), [OLD, NEW])
    assert verify(headers("v1a,c29tZXRoaW5n v2,x #{BY_OLD}"), [NEW, OLD])
    refused(:signature, headers(BY_NEW), OLD)
    refused(:signature, headers(BY_OLD.sub("v1,", "v2,")), OLD)
  end

  def test_what_was_changed_on_its_way_is_refused
    refused(:signature, headers(BY_OLD), OLD, body: BODY.sub("succeeded", "failed"))
    refused(:signature, headers(BY_OLD, "Webhook-Id" => "msg_2"), OLD)
    refused(:signature, headers(BY_OLD, "Webhook-Timestamp" => "1790000001"), OLD)
    refused(:signature, headers("v1,"), OLD)
    refused(:signature, headers(BY_OLD[0..-6]), OLD)
  end

  def test_five_minutes_either_way
    assert verify(headers(BY_OLD), OLD, now: AT + 300)
    assert verify(headers(BY_OLD), OLD, now: AT - 300)
    refused(:timestamp, headers(BY_OLD), OLD, now: AT + 301)
    refused(:timestamp, headers(BY_OLD), OLD, now: AT - 301)
    refused(:timestamp, headers(BY_OLD, "Webhook-Timestamp" => "soon"), OLD)
  end

  def test_headers_in_every_form
    rack = { "HTTP_WEBHOOK_ID" => "msg_1", "HTTP_WEBHOOK_TIMESTAMP" => "1790000000", "HTTP_WEBHOOK_SIGNATURE" => BY_OLD }
    assert verify(rack, OLD)
    assert verify(headers(BY_OLD).transform_keys(&:downcase), OLD)
    assert verify(headers(BY_OLD).transform_keys(&:upcase).transform_values { |value| [value] }, OLD)
    # Rails' own knows names as they are sent, and is no Hash.
    rails = Object.new
    sent = headers(BY_OLD).transform_keys(&:downcase)
    rails.define_singleton_method(:[]) { |name| sent[name] }
    assert verify(rails, OLD)
    %w[Webhook-Id Webhook-Timestamp Webhook-Signature].each do |name|
      refused(:missing_header, headers(BY_OLD).reject { |known, _| known == name }, OLD)
    end
  end

  def test_a_signed_body_that_is_no_event
    ["[1]", "nonsense", '{"type":"job.succeeded"}', '{"type":1,"data":{}}'].each do |body|
      key = OLD.delete_prefix("whsec_").unpack1("m")
      signature = [OpenSSL::HMAC.digest("SHA256", key, "msg_1.1790000000.#{body}")].pack("m0")
      refused(:malformed, headers("v1,#{signature}"), OLD, body: body)
    end
  end

  def test_a_secret_that_is_none_is_a_mistake_of_ones_own_and_never_shown
    ["whsec_%%%", "whsec_", "whsec_c2hvcnQ=", [], nil].each do |secret|
      error = assert_raises(ArgumentError) { verify(headers(BY_OLD), secret) }
      refute_match(/c2hvcnQ|%%%/, error.message)
    end
  end
end
