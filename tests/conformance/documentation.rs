//! Search in GitLab's documentation, which chat asks before it answers a question about GitLab.

use serde_json::{Value, json};

use crate::case::{Ask, Case, case, post};

const PATH: &str = "/v1/search/gitlab-docs";

fn search() -> Ask {
    let body = json!({
        "type": "search-docs",
        "metadata": {"source": "GitLab EE", "version": "18.9.0"},
        "payload": {"query": "How do I protect a branch?", "page_size": 4},
    });
    post(PATH, body)
}

fn letters(count: usize) -> Value {
    "a".repeat(count).into()
}

/// Every case of it.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(
            "a search without an index finds nothing, and says so well",
            search(),
        )
        .good()
        .says("/response/results", json!([]))
        .check(|answer, _| {
            let metadata = &answer.json()["metadata"];
            assert!(
                metadata["provider"].is_string() && metadata["timestamp"].is_i64(),
                "{answer}"
            );
        }),
        case(
            "a search needs no page size",
            search().lacking("/payload/page_size"),
        )
        .good(),
        case(
            "a search passes over what nobody knows",
            search().with("/payload/nobody_knows_me", json!([1])),
        )
        .good(),
        case(
            "a search with its scope alone is enough",
            search().scopes(&["documentation_search"]),
        )
        .good(),
        case(
            "a search without its scope is refused in its own words",
            search().scopes(&["duo_chat"]),
        )
        .detail(403, "Unauthorized to search documentations"),
        case("a search that is no JSON is told so", search().text("{")).status(422),
    ];
    for size in [1, 20] {
        let ask = search().with("/payload/page_size", size.into());
        cases.push(case(format!("a search may want {size} sections"), ask).good());
    }
    for size in [json!(0), json!(21), json!("4")] {
        let name = format!("a search may not want {size} sections");
        cases.push(case(name, search().with("/payload/page_size", size)).names("page_size"));
    }
    for field in ["/metadata/source", "/metadata/version"] {
        let name = field.rsplit('/').next().unwrap_or_default();
        cases.extend([
            case(
                format!("a search with a {name} of 100 characters is answered"),
                search().with(field, letters(100)),
            )
            .good(),
            case(
                format!("a search with a longer {name} is not"),
                search().with(field, letters(101)),
            )
            .names(name),
        ]);
    }
    cases.extend([
        case(
            "a search takes a question of 400 000 characters",
            search().with("/payload/query", letters(400_000)),
        )
        .good(),
        case(
            "a search takes no longer question",
            search().with("/payload/query", letters(400_001)),
        )
        .names("query"),
        case("a search needs a question", search().lacking("/payload/query")).names("query"),
    ]);
    cases
}
