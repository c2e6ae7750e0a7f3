//! What the demo model solves through the HTTP API: 1,000 held-out problems, thinking on and off,
//! on one rank and eight, with FP8 and BF16 cache.
//!
//! `cargo bench --bench accuracy [-- --json]`

use benches::Report;
use engine::KvDtype;
use harness::accuracy::{Setup, accuracy, problems, serve};

fn main() {
    let report = Report::new("accuracy");
    let problems = problems();
    for (is_thinking, thinking) in [(true, "on"), (false, "off")] {
        for n_ranks in [1, 8] {
            for kv_dtype in [KvDtype::Fp8, KvDtype::Bf16] {
                let server = serve(Setup { n_ranks, kv_dtype });
                let solved = accuracy(&server.client, &problems, is_thinking);
                let case = format!("thinking={thinking} tp={n_ranks} kv={kv_dtype:?}");
                report.row(&case, 100.0 * solved, "%");
            }
        }
    }
}
