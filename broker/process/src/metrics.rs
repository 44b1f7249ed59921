//! Registration of metrics in an injected registry.
//!
//! It declares no metric: each program's own `metrics.rs` is the catalogue of what that program emits.

use prometheus::Registry;
use prometheus::core::Collector;

/// Registers `collector` and hands it back, so that a metric is declared and registered in one expression.
///
/// ```
/// use prometheus::{IntCounter, Registry};
///
/// let registry = Registry::new();
/// let started = IntCounter::new("duo_started_total", "Starts of the program.").expect("a valid metric name");
/// let started = duo_process::metrics::register(&registry, started);
/// started.inc();
/// assert_eq!(registry.gather().len(), 1);
/// ```
///
/// # Panics
/// When the registry already holds a metric of that name: two declarations of one name are a programming error.
pub fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry
        .register(Box::new(collector.clone()))
        .expect("each metric name is declared once");
    collector
}

#[cfg(test)]
mod tests {
    use prometheus::IntGauge;

    use super::*;

    fn gauge() -> IntGauge {
        IntGauge::new("duo_places_held", "Places held.").unwrap()
    }

    #[test]
    fn a_registered_metric_shares_its_value_with_the_registry() {
        let registry = Registry::new();
        register(&registry, gauge()).set(3);

        let families = registry.gather();
        assert_eq!(families[0].get_metric()[0].get_gauge().get_value(), 3.0);
    }

    #[test]
    #[should_panic(expected = "each metric name is declared once")]
    fn a_second_metric_of_the_same_name_is_a_programming_error() {
        let registry = Registry::new();
        register(&registry, gauge());
        register(&registry, gauge());
    }
}
