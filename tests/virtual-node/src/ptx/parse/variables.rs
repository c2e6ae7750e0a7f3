//! Declarations of variables and parameters.

use crate::exec::alu::Type;
use crate::ptx::error::{Problem, PtxError};
use crate::ptx::parse::cursor::Cursor;
use crate::ptx::syntax::{Variable, VariableSpace};
use crate::ptx::token::Kind;

/// What stands before a variable's name.
struct Head {
    ty: Type,
    /// Elements of a vector type.
    n_elements: usize,
    align: usize,
}

/// A type by its directive, `.b32`.
pub(super) fn type_of(cursor: &Cursor, directive: &str) -> Result<Type, PtxError> {
    let name = directive.strip_prefix('.').unwrap_or(directive);
    Type::parse(name)
        .ok_or_else(|| cursor.refuse(Problem::Type { type_name: directive.to_owned() }))
}

fn head(cursor: &mut Cursor) -> Result<Head, PtxError> {
    let mut align = None;
    let mut n_elements = 1;
    let ty = loop {
        let word = cursor.word("a type")?;
        match word.as_str() {
            ".align" => align = Some(cursor.integer()? as usize),
            ".v2" => n_elements = 2,
            ".v4" => n_elements = 4,
            ".attribute" => cursor.skip_past(')')?,
            _ => break type_of(cursor, &word)?,
        }
    };
    let natural = ty.n_bytes() * n_elements;
    Ok(Head { ty, n_elements, align: align.unwrap_or(natural).max(1) })
}

/// What follows a state space up to the semicolon: one variable or several.
pub(super) fn declaration(
    cursor: &mut Cursor,
    space: VariableSpace,
) -> Result<Vec<Variable>, PtxError> {
    let head = head(cursor)?;
    let mut variables = Vec::new();
    loop {
        variables.push(variable(cursor, space, &head)?);
        if !cursor.take(',') {
            return Ok(variables);
        }
    }
}

/// A parameter after `.param` or `.reg`. What it points to (`.ptr .global .align 16`) says
/// nothing that an access does not check.
pub(super) fn parameter(cursor: &mut Cursor, space: VariableSpace) -> Result<Variable, PtxError> {
    let mut head = head(cursor)?;
    if cursor.take_word(".ptr") {
        while let Some(directive) = cursor.take_directive() {
            if directive == ".align" {
                cursor.integer()?;
            }
        }
    }
    head.align = head.align.max(1);
    variable(cursor, space, &head)
}

fn variable(cursor: &mut Cursor, space: VariableSpace, head: &Head) -> Result<Variable, PtxError> {
    let line = cursor.line();
    let name = cursor.word("a variable's name")?;
    let element_bytes = head.ty.n_bytes() * head.n_elements;
    let mut variable = Variable {
        space,
        name,
        ty: head.ty,
        align: head.align,
        n_bytes: element_bytes,
        is_unsized: false,
        is_external: false,
        initial: Vec::new(),
        addresses: Vec::new(),
        line,
    };
    while cursor.take('[') {
        if cursor.take(']') {
            variable.is_unsized = true;
            variable.n_bytes = 0;
        } else {
            variable.n_bytes *= cursor.integer()? as usize;
            cursor.expect(']')?;
        }
    }
    if cursor.take('=') {
        initializer(cursor, &mut variable)?;
        if variable.is_unsized {
            variable.is_unsized = false;
            variable.n_bytes = variable.initial.len();
        }
    }
    variable.initial.resize(variable.n_bytes, 0);
    Ok(variable)
}

/// Numbers, nested as they like, and addresses of other variables.
fn initializer(cursor: &mut Cursor, variable: &mut Variable) -> Result<(), PtxError> {
    if cursor.take('{') {
        while !cursor.take('}') {
            initializer(cursor, variable)?;
            cursor.take(',');
        }
        return Ok(());
    }
    let n_bytes = variable.ty.n_bytes();
    let is_negative = cursor.take('-');
    let sign = |bits: u64, sign_bit: u64| if is_negative { bits ^ sign_bit } else { bits };
    let bits = match (cursor.next()?, variable.ty) {
        (Kind::Integer(value), _) => (if is_negative { -value } else { value }) as u64,
        (Kind::Single(bits), _) => sign(bits.into(), 1 << 31),
        (Kind::Double(bits), Type::F32) => {
            sign((f64::from_bits(bits) as f32).to_bits().into(), 1 << 31)
        }
        (Kind::Double(bits), _) => sign(bits, 1 << 63),
        (Kind::Word(word), _) => return address(cursor, variable, word),
        (other, _) => return Err(cursor.unexpected(other.text(), "a value")),
    };
    variable.initial.extend_from_slice(&bits.to_le_bytes()[..n_bytes]);
    Ok(())
}

/// `name`, `name+8` or `generic(name)+8`.
fn address(cursor: &mut Cursor, variable: &mut Variable, word: String) -> Result<(), PtxError> {
    let name = if word == "generic" {
        cursor.take('(');
        let name = cursor.word("a variable's name")?;
        cursor.expect(')')?;
        name
    } else {
        word
    };
    let offset = if cursor.take('+') || cursor.is_next('-') { cursor.integer()? } else { 0 };
    variable.addresses.push((variable.initial.len(), name, offset));
    variable.initial.extend_from_slice(&[0; 8][..variable.ty.n_bytes()]);
    Ok(())
}
