//! A call as Super v1.5 and Nano write it: `{"name": "f", "arguments": {"a": 1}}`.

use serde_json::{Map, Value};

use super::ToolCall;

/// Reads a call; `None` where it is none.
pub(super) fn call(text: &str) -> Option<ToolCall> {
    let mut members: Map<String, Value> = serde_json::from_str(text).ok()?;
    let Some(Value::String(name)) = members.remove("name") else { return None };
    // Llama's own word for them is the second.
    let arguments = members.remove("arguments").or_else(|| members.remove("parameters"));
    let arguments = match arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::Object(arguments)) => Value::Object(arguments).to_string(),
        // As it goes over the wire.
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(&text).ok()?;
            text
        }
        Some(_) => return None,
    };
    (!name.is_empty()).then_some(ToolCall { name, arguments })
}
