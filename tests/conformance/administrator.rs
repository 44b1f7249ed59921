//! Someone who changes features while cases run.

use std::sync::Arc;

use duo_system_tests::harness::{Cluster, PATIENCE, until};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::case::Ask;

/// An administrator of a cluster.
pub(crate) struct Administrator {
    cluster: Arc<Cluster>,
    token: String,
}

impl Administrator {
    /// One with a token of this name, which nobody else has.
    pub(crate) async fn new(cluster: &Arc<Cluster>, name: &str) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            token: cluster.cli.token(name, "admin", &[]).await,
        }
    }

    /// Switches a feature off, and waits until `ask` is refused for it.
    pub(crate) async fn switch_off(&self, feature: &str, ask: &Ask) {
        self.change(feature, &json!({"active": false})).await;
        self.follows(ask, StatusCode::FORBIDDEN).await;
    }

    /// Assigns a model, and waits until `ask` is answered by this status.
    pub(crate) async fn assign(&self, feature: &str, model: &str, ask: &Ask, status: StatusCode) {
        let change = json!({"model": model, "acknowledge": "system tests"});
        self.change(feature, &change).await;
        self.follows(ask, status).await;
    }

    /// A new token is not known at once.
    async fn change(&self, feature: &str, change: &Value) {
        let path = format!("/admin/v1/features/{feature}");
        until("the change is made", PATIENCE, async || {
            let call = self.cluster.call(Method::PUT, &path).token(&self.token);
            let answer = call.header("if-match", "*").json(change).send().await;
            match answer.status {
                StatusCode::OK => Ok(()),
                _ => Err(answer.to_string()),
            }
        })
        .await;
    }

    async fn follows(&self, ask: &Ask, status: StatusCode) {
        until("the change is followed", PATIENCE, async || {
            let answer = ask.send(&self.cluster).await;
            match answer.status == status {
                true => Ok(()),
                false => Err(answer.to_string()),
            }
        })
        .await;
    }
}
