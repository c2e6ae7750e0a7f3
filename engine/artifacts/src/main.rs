//! `cargo kernels`: compiles every kernel family's `.cu` to what the engine embeds.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("it compiles nothing yet")
}
