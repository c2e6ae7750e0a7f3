//! `virtual-node run -- COMMAND`: runs a program on eight virtual H100s.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("it runs nothing yet")
}
