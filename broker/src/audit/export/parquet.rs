//! Apache Parquet: typed columns, in row groups that are written as they become full.

use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use uuid::Uuid;

use crate::store::audit_events::Event;

/// Records of a row group at most: as many are in memory at once.
const GROUP: usize = 20_000;
/// Bytes of `details`, the one column without a bound of its own, with which a row group ends earlier.
const GROUP_DETAILS: usize = 16 << 20;
/// By this name the file says which export it is.
const EXPORT: &str = "duo_export";

/// A column's type, and where its values come from. Any of them may be without a value.
#[derive(Clone, Copy)]
enum Column {
    Text(fn(&Event) -> Option<&str>),
    Id(fn(&Event) -> Option<Uuid>),
    Integer(fn(&Event) -> Option<i64>),
    Boolean(fn(&Event) -> Option<bool>),
    /// Microseconds since 1970, UTC.
    Moment(fn(&Event) -> Option<time::OffsetDateTime>),
}

/// Those of the CSV, in its order.
const COLUMNS: [(&str, Column); 36] = [
    ("seq", Column::Integer(|event| event.seq)),
    ("request_id", Column::Id(|event| Some(event.request_id))),
    ("kind", Column::Text(|event| Some(&event.kind))),
    ("occurred_at", Column::Moment(|event| Some(event.occurred_at))),
    ("recorded_at", Column::Moment(|event| Some(event.recorded_at))),
    ("broker", Column::Text(|event| Some(&event.broker))),
    ("auth", Column::Text(|event| Some(&event.auth))),
    ("instance_id", Column::Text(|event| event.instance_id.as_deref())),
    ("user_id", Column::Text(|event| event.user_id.as_deref())),
    ("token_id", Column::Text(|event| event.token_id.as_deref())),
    ("client", Column::Text(|event| event.client.as_deref())),
    ("address", Column::Text(|event| event.address.as_deref())),
    ("route", Column::Text(|event| Some(&event.route))),
    ("feature", Column::Text(|event| event.feature.as_deref())),
    ("lane", Column::Text(|event| event.lane.as_deref())),
    ("model", Column::Text(|event| event.model.as_deref())),
    ("prompt_id", Column::Text(|event| event.prompt_id.as_deref())),
    (
        "prompt_version",
        Column::Text(|event| event.prompt_version.as_deref()),
    ),
    (
        "config_revision",
        Column::Integer(|event| Some(event.config_revision)),
    ),
    ("stream", Column::Boolean(|event| Some(event.stream))),
    ("body_bytes", Column::Integer(|event| Some(event.body_bytes))),
    (
        "correlation_id",
        Column::Text(|event| event.correlation_id.as_deref()),
    ),
    ("trace_id", Column::Text(|event| event.trace_id.as_deref())),
    ("job_id", Column::Id(|event| event.job_id)),
    ("outcome", Column::Text(|event| event.outcome.as_deref())),
    ("reason", Column::Text(|event| event.reason.as_deref())),
    ("worker", Column::Text(|event| event.worker.as_deref())),
    ("attempts", Column::Integer(|event| event.attempts.map(i64::from))),
    ("queue_wait_us", Column::Integer(|event| event.queue_wait_us)),
    ("first_byte_us", Column::Integer(|event| event.first_byte_us)),
    ("duration_us", Column::Integer(|event| event.duration_us)),
    ("input_tokens", Column::Integer(|event| event.input_tokens)),
    ("output_tokens", Column::Integer(|event| event.output_tokens)),
    ("details", Column::Text(|event| event.details.as_deref())),
    (
        "prompt_sha256",
        Column::Text(|event| event.prompt_sha256.as_deref()),
    ),
    (
        "answer_sha256",
        Column::Text(|event| event.answer_sha256.as_deref()),
    ),
];

impl Column {
    fn schema(self, name: &str) -> Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Column::Text(_) | Column::Id(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Column::Integer(_) => (Physical::INT64, None),
            Column::Boolean(_) => (Physical::BOOLEAN, None),
            Column::Moment(_) => (
                Physical::INT64,
                Some(LogicalType::timestamp(true, TimeUnit::MICROS)),
            ),
        };
        Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical)
            .build()
    }

    fn write(self, writer: &mut SerializedColumnWriter<'_>, events: &[Event]) -> Result<(), ParquetError> {
        let events = events.iter();
        match self {
            Column::Text(of) => {
                put::<ByteArrayType>(writer, events.map(|event| of(event).map(ByteArray::from)))
            }
            Column::Id(of) => {
                let text = |id: Uuid| ByteArray::from(id.to_string().into_bytes());
                put::<ByteArrayType>(writer, events.map(|event| of(event).map(text)))
            }
            Column::Integer(of) => put::<Int64Type>(writer, events.map(of)),
            Column::Boolean(of) => put::<BoolType>(writer, events.map(of)),
            Column::Moment(of) => put::<Int64Type>(writer, events.map(|event| of(event).map(micros))),
        }
    }
}

fn micros(moment: time::OffsetDateTime) -> i64 {
    i64::try_from(moment.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn put<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    values: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let (mut levels, mut present) = (Vec::new(), Vec::new());
    for value in values {
        levels.push(i16::from(value.is_some()));
        present.extend(value);
    }
    writer.typed::<T>().write_batch(&present, Some(&levels), None)?;
    Ok(())
}

/// A file on its way.
pub(super) struct Parquet {
    writer: SerializedFileWriter<Vec<u8>>,
    /// Of the row group that is not full yet.
    events: Vec<Event>,
    details: usize,
}

impl Parquet {
    pub(super) fn new(export: Uuid) -> Result<Self, ParquetError> {
        let mut fields = Vec::with_capacity(COLUMNS.len());
        for (name, column) in COLUMNS {
            fields.push(Arc::new(column.schema(name)?));
        }
        let schema = Type::group_type_builder("audit_events")
            .with_fields(fields)
            .build()?;
        // Statistics by row group let readers pass over most of a file; those by page would be kept here until its end.
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_key_value_metadata(Some(vec![KeyValue::new(EXPORT.to_owned(), export.to_string())]))
            .build();
        let writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
        Ok(Self {
            writer,
            events: Vec::new(),
            details: 0,
        })
    }

    /// Takes records; true when there are enough of them for [`Parquet::group`].
    pub(super) fn take(&mut self, events: Vec<Event>) -> bool {
        let details = events.iter().filter_map(|event| event.details.as_ref());
        self.details += details.map(String::len).sum::<usize>();
        self.events.extend(events);
        self.events.len() >= GROUP || self.details >= GROUP_DETAILS
    }

    /// Writes what was taken as a row group, and gives the bytes.
    pub(super) fn group(&mut self) -> Result<Vec<u8>, ParquetError> {
        if !self.events.is_empty() {
            let mut group = self.writer.next_row_group()?;
            for (_, column) in COLUMNS {
                if let Some(mut writer) = group.next_column()? {
                    column.write(&mut writer, &self.events)?;
                    writer.close()?;
                }
            }
            group.close()?;
            self.events.clear();
            self.details = 0;
        }
        self.writer.flush()?;
        Ok(std::mem::take(self.writer.inner_mut()))
    }

    /// The rest of the file, without which nobody can read it.
    pub(super) fn end(mut self) -> Result<Vec<u8>, ParquetError> {
        let mut rest = self.group()?;
        self.writer.finish()?;
        rest.append(self.writer.inner_mut());
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::csv;
    use super::*;

    #[test]
    fn columns_are_those_of_the_csv() {
        let names: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
        assert_eq!(String::from_utf8(csv::head()), Ok(names.join(",") + "\r\n"));
    }
}
