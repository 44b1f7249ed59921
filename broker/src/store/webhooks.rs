//! Webhooks: receivers, the secrets that sign for them, and deliveries with what their attempts met.
//!
//! A delivery is written in the transaction that makes its event true ([`enqueue`]), so neither is there without the
//! other. Whoever needs several of these tables locks a receiver first.

mod deliveries;
mod leases;
mod receivers;
mod secrets;

pub use self::deliveries::{
    Attempt, Backlog, Delivery, DeliveryPage, DeliveryState, JobEnded, MAX_PAGE, enqueue,
};
pub use self::leases::{Due, Next, Settled, Taken};
pub use self::receivers::{Disabled, NewReceiver, Receiver, ReceiverChange};
pub use self::secrets::{Rotated, SealedSecret, SecretRow};
