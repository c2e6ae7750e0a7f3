//! What is asked of the server before anything is measured: whether it is there, what it serves,
//! and how its tokenizer counts.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::ask::{Ask, Message, Role};
use super::client::{Client, SendError};
use super::error::BenchError;
use super::exchange::{Asker, Place};
use super::protocol::{Endpoint, error_words};
use super::sample::Outcome;
use super::words::{CANDIDATES, LEAD, N_REPEATS, Words};

/// Names of models that an error lists at most.
const N_NAMED_MAX: usize = 8;

/// The model to ask for: the one that was named, if it is there; else the server's first. A server
/// that lists no models is asked for what was named.
///
/// # Errors
/// Nobody answers, or the model is not there.
pub async fn model(client: &Arc<Client>, wanted: Option<&str>) -> Result<String, BenchError> {
    let (status, body) = ask(client, Method::GET, "/v1/models", Value::Null).await?;
    let listed: Value = serde_json::from_slice(&body).unwrap_or_default();
    let names: Vec<&str> = listed["data"]
        .as_array()
        .map(|models| models.iter().filter_map(|model| model["id"].as_str()).collect())
        .unwrap_or_default();
    if status == 401 {
        let problem = "401: show a key with --api-key".to_owned();
        return Err(BenchError::Refused { path: "/v1/models".to_owned(), problem });
    }
    match (wanted, names.first()) {
        (None, Some(first)) => Ok((*first).to_owned()),
        (Some(wanted), Some(_)) if !names.contains(&wanted) => Err(BenchError::UnknownModel {
            model: wanted.to_owned(),
            served: names[..names.len().min(N_NAMED_MAX)].join(", "),
        }),
        (Some(wanted), _) => Ok(wanted.to_owned()),
        (None, None) => Err(BenchError::Settings(format!(
            "{} lists no models at /v1/models: name one with --model",
            client.address()
        ))),
    }
}

/// How words count, for prompts of the asker's endpoint that begin with this system message: with
/// the server's tokenizer where it can be asked, else by two short requests.
///
/// # Errors
/// The server does not answer, or refuses the requests.
pub async fn words(asker: &Asker, system: Option<&str>) -> Result<Words, BenchError> {
    match counted(asker, system).await? {
        Some(words) => Ok(words),
        None => estimated(asker, system).await,
    }
}

/// Tokens of a text alone, if the server tells.
///
/// # Errors
/// The server does not answer.
pub async fn count(
    client: &Arc<Client>,
    model: &str,
    text: &str,
) -> Result<Option<usize>, BenchError> {
    let body = json!({ "model": model, "prompt": text, "add_special_tokens": false });
    tokens(client, body).await
}

async fn counted(asker: &Asker, system: Option<&str>) -> Result<Option<Words>, BenchError> {
    let (client, model) = (&asker.client, &asker.asking.model);
    let is_chat = asker.asking.endpoint == Endpoint::Chat;
    let body = |text: &str| match is_chat {
        true => {
            let system = system.map(|text| json!({ "role": "system", "content": text }));
            let user = json!({ "role": "user", "content": text });
            let messages: Vec<Value> = system.into_iter().chain([user]).collect();
            json!({ "model": model, "messages": messages })
        }
        false => json!({ "model": model, "prompt": text }),
    };
    let Some(n_lead) = tokens(client, body(LEAD)).await? else { return Ok(None) };
    let mut counts = Vec::with_capacity(CANDIDATES.len());
    for word in CANDIDATES {
        let text = format!("{LEAD}{}", format!(" {word}").repeat(N_REPEATS));
        let Some(n) = tokens(client, body(&text)).await? else { return Ok(None) };
        counts.push((word, n));
    }
    Ok(Words::counted(n_lead, &counts))
}

async fn tokens(client: &Arc<Client>, body: Value) -> Result<Option<usize>, BenchError> {
    let (status, body) = ask(client, Method::POST, "/tokenize", body).await?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let n_tokens = answer["count"].as_u64().filter(|_| status == 200);
    Ok(n_tokens.map(|n| n as usize))
}

async fn estimated(asker: &Asker, system: Option<&str>) -> Result<Words, BenchError> {
    let all = CANDIDATES.join(" ");
    let mut counts = [0; 2];
    for (times, n_prompt) in counts.iter_mut().enumerate() {
        let text = format!("{LEAD}{}", format!(" {all}").repeat(times + 1));
        let message = |role, text: &str| Message { role, text: text.into() };
        let system = system.map(|text| message(Role::System, text));
        let messages = system.into_iter().chain([message(Role::User, &text)]).collect();
        let ask = Ask { messages, n_out: 1, seed: 0, cancel_after: None };
        let place = Place { idx: 0, turn: 0, intended: asker.clock.now() };
        let (sample, _) = asker.ask(&ask, place).await;
        let path = asker.asking.endpoint.path(&asker.asking.model);
        if let Outcome::Failed(failure) = sample.outcome {
            let problem = format!("{}: {}", failure.kind, failure.words);
            return Err(BenchError::Refused { path, problem });
        }
        // Where nobody counts, four characters are taken for a token, as is usual.
        *n_prompt = sample.n_prompt.unwrap_or(text.len() / 4);
    }
    Ok(Words::estimated(counts[0], counts[1]))
}

async fn ask(
    client: &Arc<Client>,
    method: Method,
    path: &str,
    body: Value,
) -> Result<(u16, Bytes), BenchError> {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    client.ask(method, path, body).await.map_err(|error| match error {
        SendError::Connect(source) => {
            BenchError::Unreachable { address: client.address().to_owned(), source }
        }
        SendError::Broken(error) => {
            BenchError::Refused { path: path.to_owned(), problem: error_words(&error.to_string()) }
        }
    })
}
