//! `lnserve chat`: one answer, or a conversation in the terminal.

mod screen;

use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;

use engine::{
    EngineHandle, Finish, Output, ReaderGone, Request, SamplingParams, Terms, Ticket, TokenId,
};
use tokio::sync::mpsc;

use super::{CliError, io_error};
use crate::boot::{self, Booted};
use crate::config::{ChatCommand, ChatSampling};
use crate::text::{
    ChatMessage, Detokenizer, Piece, ReasoningSplitter, TemplateOptions, TextModel, Thinking,
};
use screen::Screen;

/// What NVIDIA recommends while the model reasons; without reasoning, greedy.
const TEMPERATURE: f32 = 0.6;
const TOP_P: f32 = 0.95;

/// Lines read ahead of the conversation.
const N_LINES_AHEAD: usize = 1;

/// Answers `--prompt`, or every line of standard input in turn.
///
/// # Errors
/// The model does not start, or an answer to `--prompt` fails.
pub fn run(command: ChatCommand, has_colour: bool) -> Result<(), CliError> {
    let Booted { engine, text } = boot::boot(&command.model, &command.engine)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error("cannot start the runtime"))?;
    let mut chat = Chat {
        handle: engine.handle(),
        text,
        system: command.system,
        messages: Vec::new(),
        thinking: command.thinking,
        sampling: command.sampling,
        screen: Screen::new(has_colour),
    };
    let result = runtime.block_on(async {
        match command.prompt {
            Some(prompt) => chat.answer(prompt).await,
            None => chat.converse().await,
        }
    });
    engine.shutdown();
    result
}

/// A conversation so far.
struct Chat {
    handle: EngineHandle,
    text: Arc<TextModel>,
    system: Option<String>,
    messages: Vec<ChatMessage>,
    thinking: Option<Thinking>,
    sampling: ChatSampling,
    screen: Screen,
}

/// A line that was typed.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Question(String),
    Empty,
    Clear,
    Thinking(Thinking),
    Quit,
    Unknown(String),
}

/// A request that runs. Dropping it cancels it.
struct Running {
    _ticket: Ticket,
    outputs: mpsc::Receiver<Output>,
    detokenizer: Detokenizer,
    splitter: ReasoningSplitter,
}

impl Chat {
    /// Until the input ends or is interrupted between two answers.
    async fn converse(&mut self) -> Result<(), CliError> {
        if io::stdin().is_terminal() {
            self.screen.note("Ask away. /quit leaves, /clear forgets, /thinking on|off switches.");
        }
        let mut lines = read_lines();
        loop {
            self.screen.invite();
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => None,
            };
            match line.map(|line| Line::parse(&line)) {
                None => {
                    self.screen.leave();
                    return Ok(());
                }
                Some(Line::Quit) => return Ok(()),
                Some(Line::Empty) => {}
                Some(Line::Clear) => self.messages.clear(),
                Some(Line::Thinking(thinking)) => self.thinking = Some(thinking),
                Some(Line::Unknown(line)) => self.screen.note(&format!("no command {line}")),
                // A question that cannot be answered does not end the conversation.
                Some(Line::Question(question)) => match self.answer(question).await {
                    Err(CliError::EngineFailed) => return Err(CliError::EngineFailed),
                    Err(error) => self.screen.note(&format!("{error} (/clear starts afresh)")),
                    Ok(()) => {}
                },
            }
        }
    }

    /// Asks, and shows the answer as it comes. Ctrl-C stops it; what was said stays said.
    async fn answer(&mut self, question: String) -> Result<(), CliError> {
        self.messages.push(ChatMessage::new("user", question));
        let result = self.stream().await;
        self.screen.end();
        match result {
            Ok(content) => {
                self.messages.push(ChatMessage::new("assistant", content));
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    /// Shows the answer to the last message and returns its content.
    async fn stream(&mut self) -> Result<String, CliError> {
        let mut running = self.submit()?;
        let mut content = String::new();
        loop {
            let output = tokio::select! {
                output = running.outputs.recv() => output,
                _ = tokio::signal::ctrl_c() => return Ok(content),
            };
            let pieces = match output {
                Some(Output::Token { token, .. }) => {
                    let text = running.detokenizer.push(token);
                    running.splitter.push(&text)
                }
                Some(Output::Admitted { .. } | Output::PromptScores(_)) => Vec::new(),
                Some(Output::Finish(finish)) => {
                    self.finish(&mut running, &mut content, &finish)?;
                    return Ok(content);
                }
                None => return Err(CliError::EngineFailed),
            };
            self.show(pieces, &mut content)?;
        }
    }

    /// What the detokenizer and the splitter still hold, and how long it took.
    fn finish(
        &mut self,
        running: &mut Running,
        content: &mut String,
        finish: &Finish,
    ) -> Result<(), CliError> {
        let rest = running.detokenizer.finish();
        let mut pieces = running.splitter.push(&rest);
        pieces.extend(running.splitter.finish());
        self.show(pieces, content)?;
        if finish.reason == engine::EndReason::EngineFailed {
            return Err(CliError::EngineFailed);
        }
        self.screen.summarise(finish);
        Ok(())
    }

    fn show(&mut self, pieces: Vec<Piece>, content: &mut String) -> Result<(), CliError> {
        for piece in pieces {
            if let Piece::Content(text) = &piece {
                content.push_str(text);
            }
            self.screen.show(&piece).map_err(io_error("cannot write the answer"))?;
        }
        Ok(())
    }

    fn submit(&self) -> Result<Running, CliError> {
        let system = self.system.iter().map(|system| ChatMessage::new("system", system));
        let messages: Vec<ChatMessage> = system.chain(self.messages.iter().cloned()).collect();
        let options = TemplateOptions { thinking: self.thinking, ..TemplateOptions::answer() };
        let prompt = self.text.render_chat(&messages, &options)?;
        let splitter = match prompt.opens_thinking() {
            true => ReasoningSplitter::inside(),
            false => ReasoningSplitter::new(),
        };
        let tokens: Arc<[TokenId]> = self.text.encode_chat(&prompt)?.into();
        let n_room = self.handle.info().n_context_tokens.saturating_sub(tokens.len());
        let n_new_max = self.sampling.n_new_max.unwrap_or(n_room).min(n_room).max(1);
        let request = Request {
            prompt: tokens,
            n_new_max,
            stop_tokens: Arc::clone(self.text.stop_tokens()),
            sampling: sampling(&self.sampling, self.thinking),
            n_logprobs: None,
            n_prompt_logprobs: None,
            hashes_logits: false,
            cache_salt: None,
            terms: Terms::ordinary(),
        };
        // Room for the slot, every token and the end, so that the engine never finds it full.
        let (sender, outputs) = mpsc::channel::<Output>(n_new_max + 2);
        let deliver = move |output| sender.try_send(output).map_err(|_| ReaderGone);
        let _ticket = self.handle.submit(request, Box::new(deliver))?;
        let detokenizer = Detokenizer::new(Arc::clone(&self.text), true);
        Ok(Running { _ticket, outputs, detokenizer, splitter })
    }
}

impl Line {
    fn parse(line: &str) -> Line {
        match line.trim() {
            "" => Line::Empty,
            "/quit" | "/exit" => Line::Quit,
            "/clear" => Line::Clear,
            "/thinking on" => Line::Thinking(Thinking::On),
            "/thinking off" => Line::Thinking(Thinking::Off),
            command if command.starts_with('/') => Line::Unknown(command.to_owned()),
            question => Line::Question(question.to_owned()),
        }
    }
}

/// As recommended for the family, but for what the operator says.
fn sampling(chosen: &ChatSampling, thinking: Option<Thinking>) -> SamplingParams {
    let recommended = if thinking == Some(Thinking::Off) { 0.0 } else { TEMPERATURE };
    SamplingParams {
        temperature: chosen.temperature.unwrap_or(recommended),
        top_p: chosen.top_p.unwrap_or(TOP_P),
        seed: chosen.seed,
        ..SamplingParams::greedy()
    }
}

/// Standard input, line by line, from a thread of its own: reading cannot be interrupted, and the
/// program may end while it reads.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel::<String>(N_LINES_AHEAD);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_questions_or_commands() {
        let cases = [
            (" What is 1 + 1? ", Line::Question("What is 1 + 1?".to_owned())),
            ("", Line::Empty),
            ("/quit", Line::Quit),
            ("/clear ", Line::Clear),
            ("/thinking off", Line::Thinking(Thinking::Off)),
            ("/thinking", Line::Unknown("/thinking".to_owned())),
            ("/etc", Line::Unknown("/etc".to_owned())),
        ];
        for (text, line) in cases {
            assert_eq!(Line::parse(text), line);
        }
    }

    #[test]
    fn sampling_is_as_recommended_unless_told_otherwise() {
        let said = ChatSampling { temperature: None, top_p: None, seed: 7, n_new_max: None };
        for (thinking, temperature) in
            [(None, 0.6), (Some(Thinking::On), 0.6), (Some(Thinking::Off), 0.0)]
        {
            let params = sampling(&said, thinking);
            assert_eq!((params.temperature, params.top_p, params.seed), (temperature, 0.95, 7));
        }
        let said = ChatSampling { temperature: Some(1.5), top_p: Some(0.5), ..said };
        let params = sampling(&said, Some(Thinking::Off));
        assert_eq!((params.temperature, params.top_p), (1.5, 0.5));
    }
}
