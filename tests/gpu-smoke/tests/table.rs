//! The program and its tables on the virtual node, so that they work on the day they are needed.
//! Times mean nothing here and are not looked at.

use std::process::{Command, Output};

use gpu_smoke::node;
use gpu_smoke::table::{Product, Timing, ULTRA_PRODUCTS, attention, product};

fn smoke(arguments: &[&str], has_node: bool) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpu-smoke"));
    if !has_node {
        command.env_remove("LD_LIBRARY_PATH");
    }
    let output = command.args(arguments).output().expect("the program starts");
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    (output, said)
}

#[test]
fn a_rehearsal_goes_through_every_table() {
    let (output, said) = smoke(&["--rehearse"], true);
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("REHEARSAL on the virtual node: times mean nothing"), "{said}");
    // Two batches at two contexts, a prefill, five products for each batch, attention alone and
    // before a product.
    for (begin, n_lines) in [
        ("    1       1      16 ", 1),
        ("    2       1      40 ", 1),
        ("    1      20      20 ", 1),
        ("gate_up of ", 2),
        ("head of 2 tokens", 1),
        ("attention, batch 2 x 300", 1),
        ("and o, alone, 2 x 300", 1),
        ("and o, fetched, 2 x 300", 1),
    ] {
        let lines = said.lines().filter(|line| line.starts_with(begin));
        assert_eq!(lines.count(), n_lines, "{begin:?} in {said}");
    }
}

#[test]
fn without_a_gpu_it_fails_and_says_so() {
    let (output, said) = smoke(&[], true);
    assert!(!output.status.success() && said.contains("this is for real GPUs"), "{said}");
    // Where there is a GPU after all, it is no place for a rehearsal.
    let (output, said) = smoke(&["--rehearse"], false);
    let is_refused = said.contains("there is no device") || said.contains("this node is real");
    assert!(!output.status.success() && is_refused, "{said}");
    let (output, said) = smoke(&["--fast"], true);
    assert!(!output.status.success() && said.contains("--rehearse"), "{said}");
}

#[test]
fn a_line_has_the_bytes_that_a_kernel_must_move() {
    let timing = Timing { n_launches: 2, n_cold_bytes: 0 };
    let line = attention(2, 300, timing).expect("it runs");
    // Keys and values of one head; columns in bf16 and what turns them; the row's own key and value
    // and what comes out in e4m3.
    assert_eq!(line.bytes(), 2 * 300 * 128 * 2 + 2 * (2304 * 2 + 64 * 8 + 256 + 2048));
    let shape = Product { n_outputs: 32, n_inputs: 64, ..ULTRA_PRODUCTS[0] };
    let line = product(&shape, 3, timing).expect("it runs");
    assert_eq!((line.bytes(), line.work[0].flops), (32 * 64 + 3 * (64 + 32 * 2), 2 * 3 * 32 * 64));
    assert!(line.to_string().starts_with("qkv of 3 tokens"), "{line}");
}

#[test]
fn the_virtual_node_is_not_taken_for_a_real_one() {
    let error = node::open_real().expect_err("there is no GPU here");
    assert!(node::is_virtual().expect("maps are readable"), "{error:#}");
    assert!(format!("{error:#}").contains("virtual node"), "{error:#}");
    node::open_virtual().expect("it is one");
}
