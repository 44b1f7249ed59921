//! The fields of an inference: how much each may hold, what may be missing, and what is of another type.

use serde_json::{Value, json};

use super::{REVIEWERS, inference, tensor};
use crate::bodies::letters;
use crate::case::{Ask, Case, case};

/// Every case of these.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = limits();
    cases.extend(shapes());
    cases
}

/// So many equal tensors, of one number each.
fn tensors(count: usize) -> Value {
    vec![json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}); count].into()
}

fn limits() -> Vec<Case> {
    let one = |ask: Ask, what: String, problem: Option<&str>| match problem {
        None => case(format!("inference: {what} are read"), ask).good(),
        Some(problem) => case(format!("inference: {what} are too many"), ask).error(400, problem),
    };
    let mut cases = Vec::new();
    for (count, problem) in [
        (1, None),
        (256, None),
        (257, Some("inputs: may have at most 256 items")),
    ] {
        let ask = inference(REVIEWERS).with("/inputs", tensors(count));
        cases.push(one(ask, format!("{count} inputs"), problem));
    }
    let output = json!({"name": "scores"});
    for (count, problem) in [
        (0, None),
        (256, None),
        (257, Some("outputs: may have at most 256 items")),
    ] {
        let ask = inference(REVIEWERS).with("/outputs", vec![output.clone(); count].into());
        cases.push(one(ask, format!("{count} outputs"), problem));
    }
    for (count, problem) in [
        (0, None),
        (1, None),
        (16, None),
        (17, Some("inputs.0.shape: may have at most 16 items")),
    ] {
        let ask = inference(REVIEWERS)
            .with("/inputs/0/shape", vec![1; count].into())
            .with("/inputs/0/data", json!([5]));
        cases.push(one(ask, format!("{count} dimensions"), problem));
    }
    for (pointer, field) in [
        ("/id", "id"),
        ("/inputs/0/name", "inputs.0.name"),
        ("/inputs/0/datatype", "inputs.0.datatype"),
    ] {
        let with = |count| inference(REVIEWERS).with(pointer, letters(count));
        let umlauts = inference(REVIEWERS).with(pointer, "ü".repeat(255).into());
        let problem = format!("{field}: may have at most 255 characters");
        cases.extend([
            one(with(255), format!("255 characters of {field}"), None),
            one(umlauts, format!("255 characters of two bytes of {field}"), None),
            one(with(256), format!("256 characters of {field}"), Some(&problem)),
        ]);
    }
    cases
}

/// What is missing, and what is of another type.
fn shapes() -> Vec<Case> {
    let ask = || inference(REVIEWERS);
    let rows: Vec<(&str, Value, &str)> = vec![
        ("/inputs", Value::Null, "inputs: is required"),
        ("/inputs", json!([]), "inputs: is required"),
        ("/inputs", json!({}), "inputs: has to be a list"),
        ("/inputs", json!("x"), "inputs: has to be a list"),
        ("/inputs", json!([7]), "inputs.0: has to be an object"),
        (
            "/inputs",
            json!([tensor(), null]),
            "inputs.1: has to be an object",
        ),
        ("/inputs", json!([tensor(), {}]), "inputs.1.name: is required"),
        ("/inputs/0/name", Value::Null, "inputs.0.name: is required"),
        ("/inputs/0/name", json!(7), "inputs.0.name: has to be a string"),
        (
            "/inputs/0/datatype",
            json!(["FP32"]),
            "inputs.0.datatype: has to be a string",
        ),
        ("/inputs/0/shape", Value::Null, "inputs.0.shape: is required"),
        ("/inputs/0/shape", json!(4), "inputs.0.shape: has to be a list"),
        ("/inputs/0/data", Value::Null, "inputs.0.data: is required"),
        ("/id", json!(7), "id: has to be a string"),
        ("/parameters", json!([]), "parameters: has to be an object"),
        ("/parameters", json!("x"), "parameters: has to be an object"),
        ("/outputs", json!({}), "outputs: has to be a list"),
        ("/outputs", json!(["x"]), "outputs.0: has to be an object"),
    ];
    let mut cases: Vec<Case> = rows
        .into_iter()
        .map(|(pointer, value, problem)| {
            let name = format!("inference: {value} for {} is told so", &pointer[1..]);
            case(name, ask().with(pointer, value)).error(400, problem)
        })
        .collect();
    for field in ["name", "datatype", "shape", "data"] {
        let name = format!("inference: an input without {field} is told so");
        let ask = ask().lacking(&format!("/inputs/0/{field}"));
        cases.push(case(name, ask).error(400, &format!("inputs.0.{field}: is required")));
    }
    let one = |name: &str, ask: Ask| case(format!("inference: {name}"), ask).good();
    cases.push(
        case(
            "inference: a body without inputs is told so",
            ask().lacking("/inputs"),
        )
        .error(400, "inputs: is required"),
    );
    cases.extend([
        one("an id may be left out", ask().lacking("/id")),
        one("null for an id is none", ask().with("/id", Value::Null)),
        one(
            "parameters of the client's own may come along",
            ask().with("/parameters", json!({"top": [1]})),
        ),
        one(
            "an input may have parameters of its own",
            ask().with("/inputs/0/parameters", json!({"content_type": "np"})),
        ),
        one(
            "texts are tensors too",
            ask().with(
                "/inputs/0",
                json!({"name": "titles", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}),
            ),
        ),
        one(
            "what nobody knows may stand in an input",
            ask().with("/inputs/0/nobody_knows_me", json!(1)),
        ),
    ]);
    cases
}
