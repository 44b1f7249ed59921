//! The short form of every failure drill; `./tests/drills/run` runs the full ones.

use duo_system_tests::drill::{Size, find};

/// Where the short drills take their choices from.
const SEED: u64 = 1;

async fn passes(name: &str) {
    let drill = find(name).expect("a drill of this name");
    let report = (drill.run)(Size::short(SEED)).await;
    assert!(report.passed(), "\n{}", report.lines().join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_seen_by_no_client() {
    passes("rolling-restart").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_takes_down_its_own_clients_only() {
    passes("broker-kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_stops_its_generation_and_frees_its_places() {
    passes("cancel").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_model_server_does_its_calls_stay_within_the_budget() {
    passes("retries").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_follow_the_model_servers_own_line() {
    passes("slots-auto").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_takes_load_at_once() {
    passes("scale-out").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_server_restarts_lose_nothing() {
    passes("nats-restart").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_may_hand_over() {
    passes("nats-leader-change").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_everybody_is_told_and_it_heals() {
    passes("nats-two-down").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_costs_seconds() {
    passes("stream-deleted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_consumers_cost_seconds() {
    passes("consumer-deleted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_loses_nothing() {
    passes("disk-full").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_from_earlier_costs_seconds() {
    passes("store-restored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_servers_answers_are_exact_after_their_workers_were_killed() {
    passes("real-cuts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_work_is_refused_and_the_rest_is_in_time() {
    passes("overload").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_workers_answers_go_on() {
    passes("worker-kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_workers_answers_go_on_and_it_changes_nothing_when_it_thaws() {
    passes("worker-freeze").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_kills_its_workers_takes_down_only_so_many() {
    passes("poison").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_over_a_mixed_load_break_no_promise() {
    passes("mix").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_keeps_a_failing_server_from_everybody() {
    passes("breaker").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_nats_server_is_told_and_loses_nothing() {
    passes("nats-pause").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_costs_an_election() {
    passes("nats-leader-kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_leader_costs_an_election() {
    passes("nats-leader-pause").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_cut_off_is_replaced() {
    passes("partition-worker").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_cut_off_goes_on_when_it_is_back() {
    passes("partition-broker").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_line_makes_it_slower_and_nothing_else() {
    passes("slow-network").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_blocks_of_the_live_stream_cost_nothing() {
    passes("store-damaged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_at_the_stated_time_is_admitted_and_one_well_before_is_not() {
    passes("retry-after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_fifty_times_as_much_does_not_make_the_others_wait() {
    passes("fairness").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_who_still_sends_megabytes() {
    passes("large-refusal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_jobs_end_once_and_well_whatever_fails() {
    passes("jobs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_jobs_keeps_nobody_waiting_for_a_first_token() {
    passes("jobs-flood").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_away_is_noticed_by_no_client() {
    passes("postgres-away").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_killed_is_noticed_by_no_client() {
    passes("postgres-kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_stands_still_is_noticed_by_no_client() {
    passes("postgres-pause").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_with_a_full_disk_is_noticed_by_no_client() {
    passes("postgres-disk-full").await;
}
