//! `duo-broker audit facets`.

use std::process::ExitCode;

use clap::Args;
use duo_broker::store::audit_facets::Facet;
use serde_json::json;

use super::filter::FilterArguments;
use super::record;
use crate::cli::output::{self, Format, say};
use crate::cli::store;

pub(super) const EXAMPLES: &str = "Examples:
  duo-broker audit facets --since 30d
  duo-broker audit facets --by outcome,reason --feature code_completion --since 1d --kind ended";

#[derive(Debug, Args)]
pub(crate) struct FacetsArguments {
    #[command(flatten)]
    filter: FilterArguments,
    /// What to count by, with commas: kind, outcome, reason, feature, model, instance.
    #[arg(long, value_delimiter = ',')]
    by: Option<Vec<Facet>>,
    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

pub(super) async fn run(arguments: FacetsArguments) -> anyhow::Result<ExitCode> {
    let store = store()?;
    let (filter, actor) = arguments.filter.read();
    let by = arguments.by.unwrap_or_else(|| Facet::ALL.to_vec());
    let facets = store.audit_facets(&filter, &by).await?;
    let names: Vec<_> = by.iter().map(|facet| facet.as_str()).collect();
    let details = json!({"read": "facets", "filter": filter, "by": names, "records": facets.records});
    record(&store, actor, "audit facets", &details).await?;
    match arguments.format {
        Format::Json => output::json(&facets)?,
        Format::Table => {
            let rows = facets.facets.iter().flat_map(|(facet, counts)| {
                counts.iter().map(|count| {
                    let value = count.value.clone().unwrap_or_else(|| "-".to_owned());
                    vec![(*facet).to_owned(), value, count.records.to_string()]
                })
            });
            output::table(&["FACET", "VALUE", "RECORDS"], &rows.collect::<Vec<_>>())?;
            if let Some(moment) = facets.counted_to {
                let moment = output::moment(moment);
                say(&format!(
                    "counting took long: nothing before {moment} is counted; narrow the span"
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
