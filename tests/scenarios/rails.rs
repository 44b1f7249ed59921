//! GitLab's Rails side against the running broker: answers in the forms that it parses, and what people read when
//! something fails.

use std::time::{Duration, Instant};

use duo_system_tests::harness::{Builder, Cluster};
use duo_system_tests::rails::chat::{Answered, Trouble};
use duo_system_tests::rails::{Rails, UNEXPECTED, answers};
use duo_system_tests::scripted::{self, Scripted};
use duo_system_tests::sim::Settings;
use http::StatusCode;
use serde_json::{Value, json};

const DIFF: &str = "generate_commit_message";
/// Rails waits for seconds after a 429, and for more after the next; here it is in a hurry.
const HURRY: Duration = Duration::from_millis(20);

fn builder() -> Builder {
    Cluster::builder().configure(|config| {
        for feature in [
            "review_merge_request",
            "vulnerability_resolution",
            "categorize_question",
            "generate_commit_message",
        ] {
            config["features"][feature] = json!({"model": "mistral", "acknowledge": "system tests"});
        }
    })
}

/// A cluster with a model that says what it is told.
async fn told() -> (Cluster, Scripted) {
    let model = Scripted::start().await.expect("a model");
    let builder = builder().model_server(&model.url(), "openai", scripted::MODEL);
    (builder.start().await, model)
}

fn diff() -> Value {
    json!({"diff": "+ one line"})
}

async fn no_tool(_: &str, _: &str) -> String {
    panic!("no tool was to be run")
}

#[tokio::test]
async fn rails_gets_every_answer_in_the_form_that_it_parses() {
    let (cluster, model) = told().await;
    let rails = Rails::new(&cluster, "alice");

    model.say("return a + b");
    let answer = rails
        .complete("def add(a, b):\n    ", false)
        .await
        .expect("an answer");
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(body["choices"][0]["text"], "return a + b", "{body}");
    model.say("```python\nprint(1)\n```\n");
    let answer = rails.generate(true).await.expect("an answer");
    assert!(
        answer.body.ends_with("event: stream_end\r\ndata: null\r\n\r\n"),
        "{}",
        answer.body
    );
    assert!(
        !answer.body.contains("```") && answer.body.contains("print"),
        "{}",
        answer.body
    );

    model.say("Add a line");
    assert_eq!(rails.prompt(DIFF, diff()).await.as_deref(), Ok("Add a line"));
    let tools =
        json!({"input": "/explain", "selected_text": "x = 1", "file_content": "", "language_info": ""});
    model.say("It assigns.");
    let streamed = rails.stream_prompt("chat/explain_code", tools).await;
    assert_eq!(streamed.as_deref(), Ok("It assigns."));

    let reader = json!({"input": "Summarise issue 7", "suggestions": ""});
    model.say(r#"{"ResourceIdentifierType": "iid", "ResourceIdentifier": "7"}"#);
    let found = rails
        .stream_prompt("chat/issue_reader", reader)
        .await
        .expect("an answer");
    assert_eq!(
        answers::resource(&found),
        Some(("iid".to_owned(), "7".to_owned())),
        "{found}"
    );

    let documents = json!([{"id": "a1", "content": "Protect a branch in its settings."}]);
    let question = json!({"question": "How?", "documents": documents, "content_id": "CNT-IDX"});
    model.say("In the settings.\n\nATTRS: CNT-IDX-a1");
    let found = rails
        .stream_prompt("chat/documentation_search", question)
        .await
        .expect("an answer");
    assert_eq!(
        answers::documentation(&found),
        ("In the settings.".to_owned(), vec!["a1".to_owned()]),
        "{found}"
    );

    let change = json!({"mr_title": "t", "mr_description": "d", "diff_lines": "<file_diff filename=\"a.rb\"></file_diff>"});
    model.say(
        "<review>\n<comment file=\"a.rb\" old_line=\"\" new_line=\"4\">\nShorter:\n<from>\n  x = 1\n</from>\n<to>\n  y = 1\n</to>\n\
         </comment>\n</review>",
    );
    let found = rails
        .prompt("review_merge_request", change)
        .await
        .expect("an answer");
    let review = answers::review(&found).expect("a review");
    assert_eq!(review.comments.len(), 1, "{found}");
    assert_eq!(
        review.comments[0].proposals,
        [("  x = 1".to_owned(), "  y = 1".to_owned())]
    );

    let flaw = json!({"filename": "a.rb", "name": "XSS", "source_code": "puts params", "vulnerable_code": "puts params",
        "identifiers": "CWE-79", "vulnerability_description": "d"});
    model.say("<analysis>a</analysis>\n<fixed_code>\n<old_code>\nputs params\n</old_code>\n<new_code>\nputs h(params)\n</new_code>\n</fixed_code>");
    let found = rails
        .prompt("resolve_vulnerability", flaw)
        .await
        .expect("an answer");
    let fix = ("puts params".to_owned(), "puts h(params)".to_owned());
    assert_eq!(
        answers::resolution(&found),
        answers::Resolution::Fix(vec![fix]),
        "{found}"
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_chat_runs_its_tools_and_comes_to_an_answer() {
    let (cluster, model) = told().await;
    let rails = Rails::new(&cluster, "alice");
    model.say("Thought: I need the issue.\nAction: issue_reader\nAction Input: What is issue 7 about?");
    model.say("Thought: I know.\nFinal Answer: A bug in the parser.");
    let run = async |tool: &str, input: &str| {
        assert_eq!((tool, input), ("issue_reader", "What is issue 7 about?"));
        "title: A bug in the parser".to_owned()
    };
    let answered = rails.chat("What is issue 7 about?", run).await;
    let text = "A bug in the parser.".to_owned();
    assert_eq!(answered, Ok(Answered { text, turns: 2 }));
    let second = model.asked().last().expect("a turn")["messages"].to_string();
    assert!(second.contains("title: A bug in the parser"), "{second}");

    model.say("Thought: Let me look.\nAction: shell\nAction Input: ls");
    let trouble = rails
        .chat("What is here?", no_tool)
        .await
        .expect_err("no such tool");
    assert_eq!(trouble.code, "G3001", "{trouble:?}");

    (0..10).for_each(|_| model.say("Action: issue_reader\nAction Input: again"));
    let endless = rails.chat("Again?", async |_, _| "nothing".to_owned()).await;
    assert_eq!(
        endless,
        Err(Trouble {
            code: "A1006",
            message: String::new()
        })
    );
    cluster.assert_clean().await;
}

#[tokio::test]
async fn rails_reads_the_reason_when_the_model_server_fails() {
    let cluster = builder().start().await;
    let rails = Rails::new(&cluster, "alice").impatient(HURRY);
    assert_eq!(rails.health_check().await, Ok(()));
    assert_eq!(rails.model_test().await, Ok(()));

    cluster
        .sim
        .set(|sim| (sim.fail_rate, sim.fail_status) = (1.0, 404));
    assert_eq!(
        rails.model_test().await.as_ref().map_err(String::as_str),
        Err("404: Not Found")
    );
    assert_eq!(
        rails.prompt(DIFF, diff()).await.as_ref().map_err(String::as_str),
        Err(UNEXPECTED)
    );
    let trouble = rails.chat("Hello?", no_tool).await.expect_err("a failure");
    assert_eq!(trouble.code, "A1004", "{trouble:?}");
    assert!(rails.health_check().await.is_err());

    // A stream that broke off never reads as a whole answer.
    cluster.sim.set(|sim| {
        *sim = Settings {
            malformed_rate: 1.0,
            pace_ms: 50,
            fault_after: Some(3),
            ..Settings::default()
        }
    });
    assert_eq!(
        rails
            .stream_prompt(DIFF, diff())
            .await
            .as_ref()
            .map_err(String::as_str),
        Err(UNEXPECTED)
    );
    let broken = rails.generate(true).await.expect("headers");
    // The failure may overtake the first piece, or the worker's breaker be open; then the status tells it.
    let told = broken.broken || broken.status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(told && !broken.body.contains("stream_end"), "{broken:?}");

    cluster.sim.set(|sim| {
        *sim = Settings {
            ttft_ms: 60_000,
            ..Settings::default()
        }
    });
    let asked = Instant::now();
    assert_eq!(
        rails.model_test().await.as_ref().map_err(String::as_str),
        Err("408: Request Timeout")
    );
    assert!(asked.elapsed() < Duration::from_secs(3));
    cluster.sim.set(|sim| *sim = Settings::default());
    assert!(rails.prompt(DIFF, diff()).await.is_ok());
    cluster.assert_clean().await;
}

#[tokio::test]
async fn under_overload_rails_comes_again_and_its_breaker_stays_shut() {
    let sim = Settings {
        tokens: 1000,
        pace_ms: 20,
        ..Settings::default()
    };
    let cluster = builder().sim(sim).slots(4).start().await;
    let rails = Rails::new(&cluster, "alice").impatient(HURRY);
    let body = json!({"inputs": diff(), "stream": true});
    let busy: Vec<_> = (0..8)
        .map(|_| {
            let call = cluster.rails("/v1/prompts/generate_commit_message", "alice", &body);
            tokio::spawn(async move {
                if let Ok(opened) = call.try_open().await {
                    drop(opened.rest().await);
                }
            })
        })
        .collect();
    cluster.queued(8).await;
    // Refused with 429 each time, which the breaker does not count: others are asked for as before.
    for _ in 0..5 {
        assert_eq!(
            rails.prompt(DIFF, diff()).await.as_ref().map_err(String::as_str),
            Err(UNEXPECTED)
        );
    }
    busy.iter().for_each(tokio::task::JoinHandle::abort);
    drop(busy);
    cluster.queued(0).await;
    cluster.sim.set(|sim| *sim = Settings::default());
    assert!(rails.prompt(DIFF, diff()).await.is_ok());
    cluster.assert_clean().await;
}

#[tokio::test]
async fn a_chat_goes_on_after_its_broker_was_restarted_between_two_turns() {
    let (mut cluster, model) = told().await;
    let rails = Rails::new(&cluster, "alice");
    model.say("Action: issue_reader\nAction Input: issue 7");
    model.say("Final Answer: Done.");
    let restarted = tokio::sync::Mutex::new(&mut cluster);
    let run = async |_: &str, _: &str| {
        restarted.lock().await.restart_broker().await;
        "a bug".to_owned()
    };
    let answered = rails.chat("What is issue 7 about?", run).await;
    assert_eq!(
        answered,
        Ok(Answered {
            text: "Done.".to_owned(),
            turns: 2
        })
    );
    model.say("Add a line");
    assert_eq!(rails.prompt(DIFF, diff()).await.as_deref(), Ok("Add a line"));
}
