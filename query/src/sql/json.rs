//! The functions that read JSON text, such as an event's properties, and the operator `->>`. (`->`
//! makes lambdas in this dialect.)

use std::any::Any;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::json_path::{Step, find, length, string};

/// What a function gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Gives {
    /// A string's text.
    Str,
    Int,
    Float,
    Bool,
    /// Whatever is there, as JSON.
    Json,
    /// Whatever is there, as text; strings without quotes.
    Text,
    /// Whether there is anything.
    Contains,
    /// Entries of an array or object.
    Length,
}

/// `json_…(json, step, …)`: what is at the end of a path of constant keys and indexes. Null where it is not there or
/// of another type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonFunction {
    name: &'static str,
    gives: Gives,
    signature: Signature,
}

/// All of them.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    let function = |(name, gives)| {
        let signature = Signature::user_defined(Volatility::Immutable);
        Arc::new(ScalarUDF::from(JsonFunction { name, gives, signature }))
    };
    let all = [
        ("json_get_str", Gives::Str),
        ("json_get_int", Gives::Int),
        ("json_get_float", Gives::Float),
        ("json_get_bool", Gives::Bool),
        ("json_get_json", Gives::Json),
        (TEXT, Gives::Text),
        ("json_contains", Gives::Contains),
        ("json_length", Gives::Length),
    ];
    all.into_iter().map(function).collect()
}

const TEXT: &str = "json_as_text";

impl ScalarUDFImpl for JsonFunction {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [json, steps @ ..] = types else { return plan_err!("{} needs JSON text", self.name) };
        let json = match json {
            DataType::Utf8View => DataType::Utf8View,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
            other => return plan_err!("{} reads text, not {other}", self.name),
        };
        let step = |kind: &DataType| match kind {
            DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => Ok(DataType::Utf8),
            kind if kind.is_integer() => Ok(DataType::Int64),
            other => plan_err!("{} takes keys and indexes, not {other}", self.name),
        };
        std::iter::once(Ok(json)).chain(steps.iter().map(step)).collect()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.gives {
            Gives::Str | Gives::Json | Gives::Text => DataType::Utf8,
            Gives::Int | Gives::Length => DataType::Int64,
            Gives::Float => DataType::Float64,
            Gives::Bool | Gives::Contains => DataType::Boolean,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [json, steps @ ..] = args.args.as_slice() else { return exec_err!("{} needs JSON text", self.name) };
        let path: Vec<Step> = steps.iter().map(|step| self.step(step)).collect::<Result<_>>()?;
        match json {
            ColumnarValue::Array(array) => Ok(ColumnarValue::Array(self.evaluate(array, &path)?)),
            ColumnarValue::Scalar(scalar) => {
                let one = self.evaluate(&scalar.to_array()?, &path)?;
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&one, 0)?))
            }
        }
    }
}

impl JsonFunction {
    fn step(&self, value: &ColumnarValue) -> Result<Step> {
        match value {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(key))) => Ok(Step::Key(key.clone())),
            ColumnarValue::Scalar(ScalarValue::Int64(Some(index))) if *index >= 0 => Ok(Step::Index(*index as usize)),
            _ => exec_err!("{} takes constant keys and indexes from 0", self.name),
        }
    }

    fn evaluate(&self, json: &ArrayRef, path: &[Step]) -> Result<ArrayRef> {
        let texts: Box<dyn Iterator<Item = Option<&str>>> = match json.data_type() {
            DataType::Utf8View => Box::new(json.as_string_view().iter()),
            DataType::Utf8 => Box::new(json.as_string::<i32>().iter()),
            other => return exec_err!("{} reads text, not {other}", self.name),
        };
        let found = texts.map(|json| json.and_then(|json| find(json, path)));
        Ok(match self.gives {
            Gives::Str => Arc::new(found.map(|found| found.and_then(string)).collect::<StringArray>()),
            Gives::Json => Arc::new(found.collect::<StringArray>()),
            Gives::Text => {
                let text = |found: Option<_>| found.filter(|found| *found != "null");
                let text = |found| text(found).map(|found: &str| string(found).unwrap_or(found.into()));
                Arc::new(found.map(text).collect::<StringArray>())
            }
            Gives::Int => Arc::new(found.map(|found| found?.parse().ok()).collect::<Int64Array>()),
            Gives::Float => Arc::new(found.map(|found| number(found?)).collect::<Float64Array>()),
            Gives::Bool => Arc::new(found.map(|found| found?.parse().ok()).collect::<BooleanArray>()),
            Gives::Contains => Arc::new(found.map(|found| Some(found.is_some())).collect::<BooleanArray>()),
            Gives::Length => Arc::new(found.map(|found| Some(length(found?)? as i64)).collect::<Int64Array>()),
        })
    }
}

/// What JSON calls a number; the parser takes "inf" and others for some, too.
fn number(text: &str) -> Option<f64> {
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        .then(|| text.parse().ok())?
        .filter(|n: &f64| n.is_finite())
}

/// Makes a function of the operator.
#[derive(Debug)]
pub struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = functions().into_iter().find(|function| function.name() == TEXT);
        Ok(match function {
            Some(function) if expr.op == BinaryOperator::LongArrow => {
                PlannerResult::Planned(function.call(vec![expr.left, expr.right]))
            }
            _ => PlannerResult::Original(expr),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_json() {
        assert_eq!(
            [number("1"), number("-1.5e3"), number("inf"), number("1e999"), number("true")],
            [Some(1.0), Some(-1500.0), None, None, None]
        );
    }
}
