//! Every bound that the HTTP side keeps, each with its reason.

use std::time::Duration;

/// Bounds of connections, bodies and what a request may ask for. All are at least one.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Open connections on a port; for the next the one that has been idle for longest is closed,
    /// and while none is idle it waits in the kernel's backlog.
    pub n_connections_max: usize,
    /// Calls at once on one connection of gRPC's; more wait at the client.
    pub n_streams_max: u32,
    /// Bytes of a request's head; more is 431.
    pub n_head_bytes_max: usize,
    /// Header lines; more is 431.
    pub n_headers_max: usize,
    /// Time for a request's head to arrive, from the end of the answer before it on, so that idle
    /// connections and half a request do not stay.
    pub head_timeout: Duration,
    /// Bytes of a body; Triton's own default.
    pub n_body_bytes_max: usize,
    /// Time for a body to arrive.
    pub body_timeout: Duration,
    /// Time that a client may take nothing while there is something for it; then its connection is
    /// closed and what it asked for is cancelled.
    pub write_timeout: Duration,
    /// Bodies parsed and tokenised at once; the others wait for a thread.
    pub n_tokenizer_threads: usize,
    /// Prompts of one completions request.
    pub n_prompts_max: usize,
    /// Answers to one prompt.
    pub n_choices_max: usize,
    /// Messages of a chat.
    pub n_messages_max: usize,
    /// Stop strings.
    pub n_stops_max: usize,
    /// Bytes of a stop string: what a stream holds back is bounded by it.
    pub n_stop_bytes_max: usize,
    /// Stop token ids.
    pub n_stop_tokens_max: usize,
    /// Entries of a logit bias; clients of OpenAI's send up to 300.
    pub n_logit_bias_max: usize,
    /// Responses of a gRPC stream that wait for a slow reader; the rest waits as tokens.
    pub n_chunks_max: usize,
    /// Time, once a shutdown has begun, in which health checks fail but requests are taken.
    pub drain_notice: Duration,
    /// Time that running requests get to finish after that.
    pub drain_timeout: Duration,
}

impl HttpLimits {
    /// What the program uses unless a flag says otherwise.
    pub const STANDARD: HttpLimits = HttpLimits {
        n_connections_max: 16384,
        n_streams_max: 1024,
        n_head_bytes_max: 64 << 10,
        n_headers_max: 100,
        head_timeout: Duration::from_secs(30),
        n_body_bytes_max: 64 << 20,
        body_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(120),
        n_tokenizer_threads: 4,
        n_prompts_max: 1024,
        n_choices_max: 128,
        n_messages_max: 8192,
        n_stops_max: 16,
        n_stop_bytes_max: 1024,
        n_stop_tokens_max: 128,
        n_logit_bias_max: 1024,
        n_chunks_max: 32,
        drain_notice: Duration::ZERO,
        drain_timeout: Duration::from_secs(30),
    };

    /// Asserts that every bound lets something through.
    pub fn check(&self) {
        let counts = [
            self.n_connections_max,
            self.n_streams_max as usize,
            self.n_headers_max,
            self.n_body_bytes_max,
            self.n_tokenizer_threads,
            self.n_prompts_max,
            self.n_choices_max,
            self.n_messages_max,
            self.n_stops_max,
            self.n_stop_bytes_max,
            self.n_stop_tokens_max,
            self.n_logit_bias_max,
            self.n_chunks_max,
        ];
        assert!(counts.iter().all(|&n| n >= 1), "a limit of zero serves nobody: {self:?}");
        // The parser of request heads needs this much to hold a line.
        assert!(self.n_head_bytes_max >= 8192, "a head of {} bytes", self.n_head_bytes_max);
    }
}
