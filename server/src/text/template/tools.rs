//! Tools in a conversation whose template does not know them: they are written out in the family's
//! own form, the tools into the system message, calls into the turns that made them.

use std::collections::BTreeMap;

use minijinja::Value;

use super::ChatMessage;
use crate::text::thinking::ON_BY_DEFAULT;

/// How to call a tool, after those that there are.
const HOW: &str = "To call tools, answer with <TOOLCALL>[{\"name\": NAME, \"arguments\": {...}}, \
                   ...]</TOOLCALL>.";

/// Writes out what `template` would leave out.
pub(super) fn write_out(
    messages: &mut Vec<ChatMessage>,
    variables: &BTreeMap<String, Value>,
    template: &str,
) {
    if !template.contains("tool_calls") {
        messages.iter_mut().for_each(write_calls);
    }
    let tools = variables.get("tools").filter(|tools| tools.is_true());
    let Some(tools) = tools.filter(|_| !template.contains("tools")) else { return };
    let listed = serde_json::to_string(tools).unwrap_or_default();
    let section = format!("<AVAILABLE_TOOLS>{listed}</AVAILABLE_TOOLS>\n{HOW}");
    match messages.first_mut().filter(|message| message.role == "system") {
        Some(system) if system.content.trim().is_empty() => system.content = section,
        Some(system) => system.content = format!("{}\n\n{section}", system.content.trim_end()),
        None => {
            // The default message, whose place this takes.
            let is_on = template.contains(ON_BY_DEFAULT);
            let begin = if is_on { format!("{ON_BY_DEFAULT}\n\n") } else { String::new() };
            messages.insert(0, ChatMessage::new("system", format!("{begin}{section}")));
        }
    }
}

/// The calls of an assistant's turn, behind what it said.
fn write_calls(message: &mut ChatMessage) {
    let calls = message.extra.get("tool_calls").and_then(|calls| calls.try_iter().ok());
    let calls: Vec<serde_json::Value> = calls
        .into_iter()
        .flatten()
        .filter_map(|call| {
            let function = call.get_attr("function").ok()?;
            let part = |name: &str| serde_json::to_value(function.get_attr(name).ok()?).ok();
            Some(serde_json::json!({"name": part("name")?, "arguments": part("arguments")?}))
        })
        .collect();
    if !calls.is_empty() {
        let calls = serde_json::Value::from(calls);
        message.content = format!("{}<TOOLCALL>{calls}</TOOLCALL>", message.content);
    }
}
