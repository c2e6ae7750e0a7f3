//! A response as it is written: whole, or as the events that build it up.

use serde_json::{Value, json};

use super::super::super::fields::Fields;
use super::super::super::generation::{Delta, End};
use super::super::super::sse;
use super::super::speech::{Called, Said, Speech};

/// What a response repeats of its request.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo {
    members: Vec<(&'static str, Value)>,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
}

/// Members that come back as they were sent, and what stands there where they were not.
const ECHOED: [(&str, &str); 8] = [
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("reasoning", "null"),
    ("text", r#"{"format": {"type": "text"}}"#),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
];

impl Echo {
    pub(super) fn read(fields: &Fields) -> Echo {
        let member = |(name, default): (&'static str, &str)| {
            let default = serde_json::from_str(default).unwrap_or_default();
            (name, fields.get(name).cloned().unwrap_or(default))
        };
        Echo { members: ECHOED.map(member).into(), ..Echo::default() }
    }
}

/// Writes one answer down.
pub(super) struct View {
    echo: Echo,
    id: String,
    model: String,
    created: u64,
    n_prompt: usize,
    n_cached: usize,
    n_generated: usize,
    speech: Speech,
    end: Option<End>,
    /// Items that are complete.
    items: Vec<Value>,
    open: Option<Open>,
    n_events: usize,
}

/// An item that is being written.
struct Open {
    is_reasoning: bool,
    id: String,
    text: String,
}

impl Open {
    fn kind(&self) -> &'static str {
        if self.is_reasoning { "reasoning_text" } else { "output_text" }
    }

    fn part(&self, text: &str) -> Value {
        match self.is_reasoning {
            true => json!({"type": self.kind(), "text": text}),
            false => {
                json!({"type": self.kind(), "text": text, "annotations": [], "logprobs": []})
            }
        }
    }

    fn item(&self, status: &str, content: Vec<Value>) -> Value {
        match self.is_reasoning {
            true => json!({"id": self.id, "type": "reasoning", "summary": [], "content": content,
                           "status": status}),
            false => json!({"id": self.id, "type": "message", "role": "assistant",
                            "content": content, "status": status}),
        }
    }
}

impl View {
    pub(super) fn new(
        echo: Echo,
        (id, model, created): (String, String, u64),
        n_prompt: usize,
        speech: Speech,
    ) -> View {
        View {
            echo,
            id,
            model,
            created,
            n_prompt,
            n_cached: 0,
            n_generated: 0,
            speech,
            end: None,
            items: Vec::new(),
            open: None,
            n_events: 0,
        }
    }

    /// Takes a piece of the answer. Returns the events that it makes.
    pub(super) fn take(&mut self, delta: &Delta) -> Vec<Value> {
        self.n_generated += usize::from(delta.token.is_some());
        self.n_cached = delta.n_cached;
        let Said { reasoning, content, calls } = self.speech.take(delta);
        let mut events = Vec::new();
        if let Some(text) = reasoning {
            self.write(true, &text, &mut events);
        }
        if let Some(text) = content {
            self.write(false, &text, &mut events);
        }
        for called in calls {
            self.close(&mut events);
            self.call(called, &mut events);
        }
        if delta.end.is_some() {
            self.end.clone_from(&delta.end);
            self.close(&mut events);
        }
        events
    }

    /// Tokens of reasoning, so far.
    pub(super) fn n_reasoning_tokens(&self) -> usize {
        self.speech.n_reasoning_tokens()
    }

    /// The response as it stands.
    pub(super) fn response(&self) -> Value {
        let (status, details) = match self.end {
            None => ("in_progress", Value::Null),
            Some(End::Length) => ("incomplete", json!({"reason": "max_output_tokens"})),
            Some(_) => ("completed", Value::Null),
        };
        let n_reasoning = self.speech.n_reasoning_tokens();
        let usage = self.end.is_some().then(|| {
            json!({
                "input_tokens": self.n_prompt,
                "input_tokens_details": {"cached_tokens": self.n_cached},
                "output_tokens": self.n_generated,
                "output_tokens_details": {"reasoning_tokens": n_reasoning},
                "total_tokens": self.n_prompt + self.n_generated,
            })
        });
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": details,
            "model": self.model,
            "output": self.items,
            "usage": usage,
            "temperature": self.echo.temperature,
            "top_p": self.echo.top_p,
            "previous_response_id": null,
            "store": false,
            "background": false,
            "truncation": "disabled",
        });
        for (name, value) in &self.echo.members {
            response[name] = value.clone();
        }
        response
    }

    /// The events of a piece, as they are sent; at the end, of `None`, the last one.
    pub(super) fn events(&mut self, delta: Option<Delta>) -> Option<Vec<u8>> {
        let mut events = Vec::new();
        if self.n_events == 0 {
            let response = self.response();
            for kind in ["response.created", "response.in_progress"] {
                events.push(json!({"type": kind, "response": response}));
            }
        }
        match delta {
            Some(delta) => events.extend(self.take(&delta)),
            None => {
                let response = self.response();
                let kind = format!("response.{}", response["status"].as_str().unwrap_or_default());
                events.push(json!({"type": kind, "response": response}));
            }
        }
        let mut bytes = Vec::new();
        for mut event in events {
            event["sequence_number"] = self.n_events.into();
            self.n_events += 1;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            bytes.extend(sse::named_event(&kind, &event));
        }
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Adds text to the item that is open, or opens one.
    fn write(&mut self, is_reasoning: bool, text: &str, events: &mut Vec<Value>) {
        if self.open.as_ref().is_some_and(|open| open.is_reasoning != is_reasoning) {
            self.close(events);
        }
        let output_index = self.items.len();
        if self.open.is_none() {
            let kind = if is_reasoning { "rs" } else { "msg" };
            let id = format!("{kind}_{}_{output_index}", &self.id);
            let open = Open { is_reasoning, id, text: String::new() };
            events.push(json!({"type": "response.output_item.added",
                "output_index": output_index, "item": open.item("in_progress", Vec::new())}));
            events.push(json!({"type": "response.content_part.added", "item_id": open.id,
                "output_index": output_index, "content_index": 0, "part": open.part("")}));
            self.open = Some(open);
        }
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let mut delta = json!({"type": format!("response.{}.delta", open.kind()),
            "item_id": open.id, "output_index": output_index, "content_index": 0, "delta": text});
        if !is_reasoning {
            delta["logprobs"] = json!([]);
        }
        events.push(delta);
    }

    fn close(&mut self, events: &mut Vec<Value>) {
        let Some(open) = self.open.take() else { return };
        let output_index = self.items.len();
        let mut done = json!({"type": format!("response.{}.done", open.kind()),
            "item_id": open.id, "output_index": output_index, "content_index": 0,
            "text": open.text});
        if !open.is_reasoning {
            done["logprobs"] = json!([]);
        }
        events.push(done);
        let part = open.part(&open.text);
        events.push(json!({"type": "response.content_part.done", "item_id": open.id,
            "output_index": output_index, "content_index": 0, "part": part}));
        let status = if self.end == Some(End::Length) { "incomplete" } else { "completed" };
        let item = open.item(status, vec![part]);
        events.push(json!({"type": "response.output_item.done", "output_index": output_index,
            "item": item}));
        self.items.push(item);
    }

    fn call(&mut self, called: Called, events: &mut Vec<Value>) {
        let output_index = self.items.len();
        let Called { id: call_id, call, .. } = called;
        let id = format!("fc_{}_{output_index}", &self.id);
        let item = |status: &str, arguments: &str| {
            json!({"id": id, "type": "function_call", "call_id": call_id, "name": call.name,
                   "arguments": arguments, "status": status})
        };
        events.push(json!({"type": "response.output_item.added", "output_index": output_index,
            "item": item("in_progress", "")}));
        events.push(json!({"type": "response.function_call_arguments.delta", "item_id": id,
            "output_index": output_index, "delta": call.arguments}));
        events.push(json!({"type": "response.function_call_arguments.done", "item_id": id,
            "output_index": output_index, "name": call.name, "arguments": call.arguments}));
        let whole = item("completed", &call.arguments);
        events.push(json!({"type": "response.output_item.done", "output_index": output_index,
            "item": whole}));
        self.items.push(whole);
    }
}
