//! Tokens to a module as written: declarations and functions of statements.

mod body;
mod cursor;
mod variables;

use cursor::Cursor;

use crate::ptx::error::PtxError;
use crate::ptx::syntax::{Function, LaunchLimits, Source, VariableSpace};
use crate::ptx::token::tokens;

/// Reads a module.
pub(super) fn parse(text: &str) -> Result<Source, PtxError> {
    let mut cursor = Cursor::new(tokens(text)?);
    let mut source = Source::default();
    while !cursor.is_at_end() {
        module_item(&mut cursor, &mut source)?;
    }
    Ok(source)
}

fn module_item(cursor: &mut Cursor, source: &mut Source) -> Result<(), PtxError> {
    let mut is_external = false;
    loop {
        let directive = cursor.word("a directive")?;
        match directive.as_str() {
            ".version" | ".target" | ".address_size" | ".file" | ".loc" => {
                cursor.skip_line();
                return Ok(());
            }
            ".pragma" => return cursor.skip_past(';'),
            ".section" => return skip_section(cursor),
            ".extern" => is_external = true,
            ".visible" | ".weak" | ".common" => {}
            ".entry" | ".func" => {
                source.functions.push(function(cursor, directive == ".entry")?);
                return Ok(());
            }
            ".global" | ".const" | ".shared" => {
                let space = match directive.as_str() {
                    ".global" => VariableSpace::Global,
                    ".const" => VariableSpace::Const,
                    _ => VariableSpace::Shared,
                };
                for mut variable in variables::declaration(cursor, space)? {
                    variable.is_external = is_external;
                    source.variables.push(variable);
                }
                return cursor.expect(';');
            }
            _ => return Err(cursor.unknown_directive(directive)),
        }
    }
}

/// Debug information, which nobody reads here.
fn skip_section(cursor: &mut Cursor) -> Result<(), PtxError> {
    cursor.skip_past('{')?;
    cursor.skip_past('}')
}

fn function(cursor: &mut Cursor, is_entry: bool) -> Result<Function, PtxError> {
    let returns = if cursor.is_next('(') { parameters(cursor)? } else { Vec::new() };
    let name = cursor.word("a function's name")?;
    let params = if cursor.is_next('(') { parameters(cursor)? } else { Vec::new() };
    let limits = limits(cursor)?;
    let body = if cursor.is_next('{') {
        Some(body::body(cursor)?)
    } else {
        cursor.expect(';')?;
        None
    };
    Ok(Function { name, is_entry, returns, params, limits, body })
}

fn parameters(cursor: &mut Cursor) -> Result<Vec<crate::ptx::syntax::Variable>, PtxError> {
    cursor.expect('(')?;
    let mut parameters = Vec::new();
    while !cursor.take(')') {
        let space = match cursor.word("`.param` or `.reg`")?.as_str() {
            ".param" => VariableSpace::Param,
            ".reg" => VariableSpace::Register,
            other => return Err(cursor.unexpected(other.to_owned(), "`.param` or `.reg`")),
        };
        parameters.push(variables::parameter(cursor, space)?);
        cursor.take(',');
    }
    Ok(parameters)
}

/// Directives between a function's parameters and its body.
fn limits(cursor: &mut Cursor) -> Result<LaunchLimits, PtxError> {
    let mut limits = LaunchLimits::default();
    while let Some(directive) = cursor.take_directive() {
        match directive.as_str() {
            ".maxntid" => limits.max_threads = Some(cursor.triple()?),
            ".reqntid" => limits.required_threads = Some(cursor.triple()?),
            ".reqnctapercluster" => limits.required_cluster = Some(cursor.triple()?),
            ".minnctapersm" => limits.min_blocks_per_sm = Some(cursor.integer()? as u32),
            ".maxnreg" => limits.max_registers = Some(cursor.integer()? as u32),
            ".maxclusterrank" | ".maxnctapersm" => {
                cursor.integer()?;
            }
            ".explicitcluster" | ".noreturn" | ".blocksareclusters" => {}
            ".pragma" => cursor.skip_past(';')?,
            ".loc" | ".file" => cursor.skip_line(),
            _ => return Err(cursor.unknown_directive(directive)),
        }
    }
    Ok(limits)
}
