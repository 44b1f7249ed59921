//! Opens and closes one audit record per request of a known caller.

pub mod writer;

use duo_contract::name::{FeatureName, ModelName};
use uuid::Uuid;

/// A request's record from acceptance to its terminal record. Cheap to clone;
/// the last clone's drop closes what nobody closed, as cancelled.
#[derive(Debug, Clone)]
pub struct OpenRecord {}

impl OpenRecord {
    /// The request's id, a UUIDv7.
    #[must_use]
    pub fn request_id(&self) -> Uuid {
        unimplemented!()
    }

    /// What the record is to say the request was for.
    pub fn note(&self, _feature: Option<&FeatureName>, _model: Option<&ModelName>, _stream: bool) {
        unimplemented!()
    }

    /// Closes the record as refused, unless it is closed or handed to the queue.
    pub fn refuse(&self, _reason: &str) {
        unimplemented!()
    }
}
