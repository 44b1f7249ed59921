use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn document() -> Value {
    serde_json::to_value(openapi::document()).expect("JSON")
}

/// Method, path and the operation of each.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().expect("a path item");
        item.iter()
            .map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
    });
    operations.collect()
}

#[test]
fn every_route_is_in_the_document_and_nothing_else_is() {
    let name = |filter: MethodFilter| match filter {
        MethodFilter::GET => "GET",
        MethodFilter::PUT => "PUT",
        MethodFilter::POST => "POST",
        MethodFilter::DELETE => "DELETE",
        other => panic!("{other:?}"),
    };
    let routes: BTreeSet<_> = doors()
        .iter()
        .map(|door| (name(door.documented.0).to_owned(), door.documented.1.to_owned()))
        .collect();
    let documented: BTreeSet<_> = operations(&document())
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    assert_eq!(routes, documented);
}

#[test]
fn the_document_is_sound() {
    let document = document();
    let version = document["openapi"].as_str().expect("a version");
    assert!(version.starts_with("3.1"), "{version}");
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    // It is what its own reader takes.
    let again: utoipa::openapi::OpenApi = serde_json::from_value(document.clone()).expect("readable");
    assert_eq!(serde_json::to_value(again).expect("JSON"), document);
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let what = format!("{method} {path}");
        let id = operation["operationId"].as_str().expect("an operation id");
        assert!(ids.insert(id.to_owned()), "{what}: {id} is there twice");
        let said: BTreeSet<_> = path
            .split('/')
            .filter_map(|part| Some(part.strip_prefix('{')?.strip_suffix('}')?.to_owned()))
            .collect();
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let named: BTreeSet<_> = parameters
            .iter()
            .filter(|parameter| parameter["in"] == "path")
            .inspect(|parameter| assert_eq!(parameter["required"], true, "{what}"))
            .map(|parameter| parameter["name"].as_str().expect("a name").to_owned())
            .collect();
        assert_eq!(said, named, "{what}");
        let responses = operation["responses"].as_object().expect("responses");
        assert!(responses.keys().any(|status| status.starts_with('2')), "{what}");
        assert!(
            responses.contains_key("401") && responses.contains_key("403"),
            "{what}"
        );
        assert!(
            responses
                .values()
                .all(|response| response["description"].is_string()),
            "{what}"
        );
    }
    assert_references(&document, &document);
}

#[test]
fn every_answer_is_told_field_by_field() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        // The configuration is a file, and the document has its form from elsewhere.
        if path.ends_with("/config") || path.ends_with("/openapi.json") {
            continue;
        }
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let Some(content) = response["content"].as_object() else {
                assert_eq!(status, "204", "{method} {path}");
                continue;
            };
            for answer in content.values() {
                assert_told(&answer["schema"], &document, &format!("{method} {path} {status}"));
            }
        }
    }
}

/// No object is left untold, however deep, but rows of the database and what model servers say.
fn assert_told(schema: &Value, document: &Value, place: &str) {
    if ["/before", "/after", "/answer"]
        .iter()
        .any(|end| place.ends_with(end))
    {
        return;
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let found = document.pointer(&reference[1..]).expect("a schema");
        return assert_told(found, document, place);
    }
    if schema["items"].is_object() {
        return assert_told(&schema["items"], document, place);
    }
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            assert_told(property, document, &format!("{place}/{name}"));
        }
        return;
    }
    for kind in ["oneOf", "allOf"] {
        for part in schema[kind].as_array().into_iter().flatten() {
            assert_told(part, document, place);
        }
    }
    let is = |kind: &str| {
        let said = &schema["type"];
        said == kind
            || said
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|said| said == kind))
    };
    assert!(!is("object"), "{place} does not say its fields: {schema}");
    assert!(
        schema["oneOf"].is_array() || schema["allOf"].is_array() || !schema["type"].is_null(),
        "{place} says nothing: {schema}"
    );
}

/// Everything that is referred to is there.
fn assert_references(part: &Value, document: &Value) {
    match part {
        Value::Object(entries) => {
            if let Some(Value::String(reference)) = entries.get("$ref") {
                let pointer = reference
                    .strip_prefix('#')
                    .expect("a reference into the document");
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            entries
                .values()
                .for_each(|entry| assert_references(entry, document));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_references(item, document)),
        _ => {}
    }
}
