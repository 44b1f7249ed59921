//! Pieces of sealed texts on their way into Postgres.

use duo_contract::body::BodyMessage;

use super::source::Delivery;
use super::{GivenUp, Writer, chain};
use crate::store::StoreError;
use crate::store::audit_bodies::Piece;

impl Writer {
    /// Writes a piece, however long Postgres is away.
    pub(super) async fn write_body(&mut self, delivery: &Delivery) -> Result<(), GivenUp> {
        let read = BodyMessage::decode(&delivery.payload).map_err(|error| chain(&error));
        let piece = match read.and_then(Piece::try_from) {
            Ok(piece) => piece,
            Err(problem) => return self.reject(delivery, &problem).await,
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_body(&piece).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Unavailable(error)) => {
                    self.pause(attempt, &error, std::slice::from_ref(delivery))
                        .await?;
                }
                // A partition that was known may have been dropped since; ask once more.
                Err(StoreError::Refused(_)) if attempt == 1 && !self.body_days.is_empty() => {
                    self.body_days.clear();
                }
                Err(refusal) => return self.reject(delivery, &chain(&refusal)).await,
            }
        }
    }

    async fn try_body(&mut self, piece: &Piece) -> Result<(), StoreError> {
        if !self.body_days.contains(&piece.drop_on) {
            self.store.create_audit_body_partition(piece.drop_on).await?;
            self.body_days.insert(piece.drop_on);
        }
        self.store.insert_audit_body(piece).await
    }
}
