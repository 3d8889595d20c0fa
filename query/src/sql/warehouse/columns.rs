//! The engines' values, which come as JSON, in Arrow's columns. Pure.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch, RecordBatchOptions,
    StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::kernels::cast_utils::parse_decimal;
use arrow::datatypes::{DataType, Decimal128Type, Field, Schema, SchemaRef, TimeUnit};
use chrono::{FixedOffset, NaiveDate, NaiveDateTime};
use serde_json::Value;

use super::Failure;

/// A row as it comes.
pub type Row = Vec<Value>;

/// The columns of an answer, by names and types.
pub fn schema(columns: impl IntoIterator<Item = (String, DataType)>) -> SchemaRef {
    Arc::new(Schema::new(columns.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect::<Vec<_>>()))
}

/// Times have microseconds, in UTC; finer ones are cut.
pub fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

/// Exact numbers of so many digits; text where they are more than Arrow's usual ones hold.
pub fn decimal(precision: &str, scale: &str) -> DataType {
    match (precision.trim().parse(), scale.trim().parse()) {
        (Ok(precision @ 1..=38), Ok(scale)) => DataType::Decimal128(precision, scale),
        _ => DataType::Utf8,
    }
}

/// Rows in these columns.
pub fn batch(schema: &SchemaRef, rows: &[Row]) -> Result<RecordBatch, Failure> {
    if let Some(row) = rows.iter().find(|row| row.len() != schema.fields().len()) {
        return Err(Failure::Broken(format!("a row of {} values in {} columns", row.len(), schema.fields().len())));
    }
    let columns = schema.fields().iter().enumerate();
    let columns = columns.map(|(at, field)| column(field.data_type(), rows, at)).collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|error| Failure::Broken(error.to_string()))
}

fn column(kind: &DataType, rows: &[Row], at: usize) -> Result<ArrayRef, Failure> {
    Ok(match kind {
        DataType::Boolean => Arc::new(values(rows, at, Value::as_bool)?.into_iter().collect::<BooleanArray>()),
        DataType::Int64 => Arc::new(values(rows, at, integer)?.into_iter().collect::<Int64Array>()),
        DataType::UInt64 => Arc::new(values(rows, at, integer)?.into_iter().collect::<UInt64Array>()),
        DataType::Float64 => Arc::new(values(rows, at, float)?.into_iter().collect::<Float64Array>()),
        DataType::Date32 => Arc::new(values(rows, at, date)?.into_iter().collect::<Date32Array>()),
        DataType::Timestamp(..) => {
            let times = values(rows, at, micros)?.into_iter().collect::<TimestampMicrosecondArray>();
            Arc::new(times.with_timezone("+00:00"))
        }
        DataType::Decimal128(precision, scale) => {
            let units = |value: &Value| parse_decimal::<Decimal128Type>(&text(value), *precision, *scale).ok();
            let units = values(rows, at, units)?.into_iter().collect::<Decimal128Array>();
            let units = units.with_precision_and_scale(*precision, *scale);
            Arc::new(units.map_err(|error| Failure::Broken(error.to_string()))?)
        }
        _ => Arc::new(values(rows, at, |value| Some(text(value)))?.into_iter().collect::<StringArray>()),
    })
}

fn values<T>(rows: &[Row], at: usize, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<Option<T>>, Failure> {
    let value = |row: &Row| match &row[at] {
        Value::Null => Ok(None),
        value => read(value).map(Some).ok_or_else(|| Failure::Value(value.to_string())),
    };
    rows.iter().map(value).collect()
}

/// Lists, maps and rows as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Large ones may come as text.
fn integer<T: std::str::FromStr>(value: &Value) -> Option<T> {
    text(value).parse().ok()
}

/// What JSON has no number for comes as text: Infinity, NaN, -inf.
fn float(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// Days since 1970.
fn date(value: &Value) -> Option<i32> {
    let day = NaiveDate::parse_from_str(value.as_str()?, "%Y-%m-%d").ok()?;
    i32::try_from((day - NaiveDate::default()).num_days()).ok()
}

/// `2026-01-01 00:00:00.123456`, with a `T`, and with ` UTC`, `Z` or an offset behind it. Without one it is UTC.
fn micros(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    let clock = text.get(11..)?;
    let end = 11 + clock.find([' ', 'Z', '+', '-']).unwrap_or(clock.len());
    let time = NaiveDateTime::parse_from_str(&text[..end].replacen('T', " ", 1), "%Y-%m-%d %H:%M:%S%.f").ok()?;
    let offset = match text[end..].trim() {
        "" | "Z" | "UTC" => 0,
        offset => offset.parse::<FixedOffset>().ok()?.local_minus_utc(),
    };
    time.and_utc().timestamp_micros().checked_sub(i64::from(offset) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use arrow::util::display::array_value_to_string;
    use serde_json::json;

    use super::*;

    fn shown(kind: DataType, value: Value) -> Option<String> {
        let schema = schema([("a".to_owned(), kind)]);
        let batch = batch(&schema, &[vec![Value::Null], vec![value]]).ok()?;
        assert!(batch.column(0).is_null(0));
        array_value_to_string(batch.column(0), 1).ok()
    }

    #[test]
    fn values_keep_what_they_are() {
        for (kind, value, expected) in [
            (DataType::Boolean, json!(true), "true"),
            (DataType::Int64, json!(-9_223_372_036_854_775_808_i64), "-9223372036854775808"),
            (DataType::UInt64, json!("18446744073709551615"), "18446744073709551615"),
            (DataType::Float64, json!(1.5), "1.5"),
            (DataType::Float64, json!("NaN"), "NaN"),
            (DataType::Float64, json!("-Infinity"), "-inf"),
            (DataType::Float64, json!("inf"), "inf"),
            (decimal("38", " 9"), json!("12345678901234567890.123456789"), "12345678901234567890.123456789"),
            (decimal("10", "2"), json!("-1.5"), "-1.50"),
            (decimal("76", "2"), json!("1.50"), "1.50"),
            (DataType::Date32, json!("1969-12-31"), "1969-12-31"),
            (time(), json!("2026-01-01 00:00:00.123456 UTC"), "2026-01-01T00:00:00.123456Z"),
            (time(), json!("2026-01-01T00:00:00.123456789Z"), "2026-01-01T00:00:00.123456Z"),
            (time(), json!("2026-01-01 00:00:00"), "2026-01-01T00:00:00Z"),
            (time(), json!("2026-01-01 00:00:00 +02:00"), "2025-12-31T22:00:00Z"),
            (DataType::Utf8, json!("a"), "a"),
            (DataType::Utf8, json!([1, { "a": null }]), "[1,{\"a\":null}]"),
        ] {
            assert_eq!(shown(kind.clone(), value.clone()).as_deref(), Some(expected), "{kind} {value}");
        }
    }

    #[test]
    fn what_is_no_value_is_an_error() {
        for (kind, value) in [
            (DataType::Boolean, json!("true")),
            (DataType::Int64, json!(1.5)),
            (DataType::UInt64, json!(-1)),
            (DataType::Date32, json!("2026-02-30")),
            (time(), json!("2026-01-01 00:00:00 Europe/Berlin")),
            (time(), json!("soon")),
            (decimal("3", "0"), json!("x")),
        ] {
            assert_eq!(shown(kind.clone(), value.clone()), None, "{kind} {value}");
        }
        let two = schema([("a".to_owned(), DataType::Utf8), ("b".to_owned(), DataType::Utf8)]);
        assert!(batch(&two, &[vec![json!("a")]]).is_err());
        assert_eq!(batch(&schema([]), &[vec![], vec![]]).map(|batch| batch.num_rows()).ok(), Some(2));
    }
}
