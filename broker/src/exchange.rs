//! The story of one request: route, admit, record, send.

use std::time::Duration;

use bytes::Bytes;
use duo_contract::dead::DeadHead;
use duo_contract::failure::FailureKind;
use duo_contract::name::{FeatureName, Lane, ModelName};
use duo_contract::snapshot::{BodyPolicy, Feature};

use crate::admission::{Admission, Asker};
use crate::audit::{AuditLog, OpenRecord};
use crate::caller::Caller;
use crate::dispatch::Dispatch;
use crate::dispatch::send::Outgoing;
pub use crate::dispatch::send::Reply;
use crate::probe::Probe;
use crate::request::{ExchangeError, ModelChoice, RoutedRequest, Work};
use crate::routing::Routing;

/// The exchange; cheap to clone.
#[derive(Debug, Clone)]
pub struct Exchange {
    routing: Routing,
    admission: Admission,
    audit: AuditLog,
    dispatch: Dispatch,
}

impl Exchange {
    /// The exchange of these parts.
    #[must_use]
    pub fn new(routing: Routing, admission: Admission, audit: AuditLog, dispatch: Dispatch) -> Self {
        Self {
            routing,
            admission,
            audit,
            dispatch,
        }
    }

    /// The configuration of the moment.
    #[must_use]
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The first gate, before the body is read: feature active, worker there,
    /// the caller within its limit, the lane's expected wait within its bound.
    /// Where the body names the model, the gate is shut when every model that
    /// the caller could name refuses it.
    ///
    /// # Errors
    /// A refusal with its `Retry-After`.
    pub fn gate(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        name: &FeatureName,
    ) -> Result<(), ExchangeError> {
        let table = self.routing.load();
        record.note(Some(name), None, false);
        let feature = table.active_feature(caller, name)?;
        record.note_route(feature, table.revision());
        self.takes_anything()?;
        match &feature.model {
            Some(model) => self.admission.check(caller.into(), feature, model),
            None => self.any_of(caller, feature, table.nameable(caller, feature)),
        }
    }

    /// Is there a place for requests and for their records?
    fn takes_anything(&self) -> Result<(), ExchangeError> {
        self.can_record()?;
        self.dispatch.gate()
    }

    /// Can a new request have its record?
    ///
    /// # Errors
    /// Not just now.
    pub fn can_record(&self) -> Result<(), ExchangeError> {
        if !self.audit.is_saturated() {
            return Ok(());
        }
        Err(ExchangeError {
            retry_after: Some(Duration::from_secs(1)),
            ..ExchangeError::new(
                FailureKind::ModelUnavailable,
                "audit_unavailable",
                "the audit log cannot take a record just now; try again",
            )
        })
    }

    /// May the caller have a place in line for one of the models it could name? Else the refusal that is over first.
    fn any_of<'a>(
        &self,
        caller: &Caller,
        feature: &Feature,
        models: impl Iterator<Item = &'a ModelName>,
    ) -> Result<(), ExchangeError> {
        let mut least: Option<ExchangeError> = None;
        for model in models {
            let Err(refusal) = self.admission.check(caller.into(), feature, model) else {
                return Ok(());
            };
            // One without a time to come again is over at nobody knows when.
            let over = |refusal: &ExchangeError| refusal.retry_after.unwrap_or(Duration::MAX);
            if least.as_ref().is_none_or(|least| over(&refusal) < over(least)) {
                least = Some(refusal);
            }
        }
        // Without any model the body's is unknown, which routing says better.
        least.map_or(Ok(()), Err)
    }

    /// Finds the model for a feature and checks that the caller may use both.
    ///
    /// # Errors
    /// Feature unknown or inactive, pair not supported, model unknown or not allowed.
    pub fn route(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        feature: &FeatureName,
        choice: &ModelChoice,
    ) -> Result<RoutedRequest, ExchangeError> {
        let routed = self.routing.load().route(caller, feature, choice)?;
        record.note_route(&routed.feature, routed.revision);
        Ok(routed)
    }

    /// Admits, records, queues; comes back when the request is durably queued.
    ///
    /// # Errors
    /// A refusal, or the queue could not take it.
    pub async fn send(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        routed: &RoutedRequest,
        work: Work,
    ) -> Result<Reply, ExchangeError> {
        record.note(Some(&routed.feature.name), Some(&routed.model.name), work.stream);
        record.note_work(work.prompt.as_ref(), work.body.len());
        let key = work.supersede_key.as_deref();
        let asker = Asker {
            replaces: key.is_some_and(|key| self.dispatch.has_queued(key)),
            ..caller.into()
        };
        let place = self.admission.admit(asker, &routed.feature, &routed.model.name)?;
        if routed.feature.bodies != BodyPolicy::None {
            record.keep_bodies(&routed.feature, &work)?;
        }
        self.dispatch
            .send(Outgoing {
                caller,
                record,
                routed,
                work,
                place,
            })
            .await
    }

    /// Runs a dead letter again under the configuration of the moment, for the
    /// model that its body was made for. It leaves no letter of its own.
    ///
    /// # Errors
    /// As [`Exchange::send`]; feature or model gone, or the feature is inactive.
    pub async fn replay(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        letter: &DeadHead,
        body: Bytes,
    ) -> Result<Reply, ExchangeError> {
        record.leave_no_letter();
        record.note(Some(&letter.feature), Some(&letter.model), letter.stream);
        let routed = self.routing.load().again(&letter.feature, &letter.model)?;
        record.note_route(&routed.feature, routed.revision);
        let prompt = letter.prompt_id.clone().zip(letter.prompt_version.clone());
        let work = Work {
            endpoint: letter.endpoint,
            body,
            stream: letter.stream,
            prompt,
            supersede_key: None,
        };
        self.send(caller, record, &routed, work).await
    }

    /// Feature and model of a job, as they are now.
    ///
    /// # Errors
    /// Either is gone, or the feature is inactive.
    pub fn again(&self, feature: &FeatureName, model: &ModelName) -> Result<RoutedRequest, ExchangeError> {
        self.routing.load().again(feature, model)
    }

    /// Sends a run of a job.
    ///
    /// # Errors
    /// As [`Exchange::send`].
    pub async fn run_job(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        routed: &RoutedRequest,
        work: Work,
    ) -> Result<Reply, ExchangeError> {
        self.takes_anything()?;
        self.send(caller, record, routed, work).await
    }

    /// Slots that serve a model now.
    #[must_use]
    pub fn slots_of(&self, model: &ModelName) -> u32 {
        self.admission.outlook(model).slots
    }

    /// Seconds until a job with so many before it has a slot; `None` where nobody serves its model.
    #[must_use]
    pub fn wait_of(&self, lane: Lane, model: &ModelName, ahead: u64) -> Option<f64> {
        let outlook = self.admission.outlook(model);
        let slots = f64::from(outlook.slots);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let turns = ahead as f64 / slots;
        (outlook.slots > 0).then(|| outlook.wait[lane as usize] + turns * outlook.slot_time[lane as usize])
    }

    /// Sends a probe, whatever the rules say of its model and feature. It leaves no dead letter.
    ///
    /// # Errors
    /// As [`Exchange::send`].
    pub async fn probe(
        &self,
        caller: &Caller,
        record: &OpenRecord,
        probe: Probe,
    ) -> Result<Reply, ExchangeError> {
        record.leave_no_letter();
        record.note_route(&probe.routed.feature, probe.routed.revision);
        self.takes_anything()?;
        self.send(caller, record, &probe.routed, probe.work).await
    }

    /// Do the servers of `model` turn its tool calls into data?
    #[must_use]
    pub fn calls_tools(&self, model: &ModelName) -> bool {
        self.admission.fleet().calls_tools(model)
    }

    /// Models that a caller may name.
    #[must_use]
    pub fn models(&self, caller: &Caller) -> Vec<ModelName> {
        let table = self.routing.load();
        let mut models: Vec<_> = table
            .models()
            .map(|model| model.name.clone())
            .filter(|model| caller.may_use_model(model))
            .collect();
        models.sort();
        models
    }
}
