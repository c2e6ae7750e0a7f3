//! The statements of a function's body.

use crate::ptx::error::{Problem, PtxError};
use crate::ptx::parse::cursor::Cursor;
use crate::ptx::parse::variables::{self, type_of};
use crate::ptx::syntax::{
    Guard, Instruction, Mnemonic, Operand, Statement, StatementKind, VariableSpace,
};
use crate::ptx::token::Kind;

/// Reads from the opening brace to the closing one. Both are left out.
pub(super) fn body(cursor: &mut Cursor) -> Result<Vec<Statement>, PtxError> {
    cursor.expect('{')?;
    let mut statements = Vec::new();
    let mut depth = 0;
    loop {
        let line = cursor.line();
        let mut push = |kind| statements.push(Statement { kind, line });
        if cursor.take('{') {
            depth += 1;
            push(StatementKind::Open);
        } else if cursor.take('}') {
            if depth == 0 {
                return Ok(statements);
            }
            depth -= 1;
            push(StatementKind::Close);
        } else if cursor.take(';') {
            // An empty statement.
        } else {
            for kind in statement(cursor)? {
                push(kind);
            }
        }
    }
}

fn statement(cursor: &mut Cursor) -> Result<Vec<StatementKind>, PtxError> {
    if cursor.is_next('@') {
        return Ok(vec![StatementKind::Instruction(instruction(cursor)?)]);
    }
    let is_label = cursor.peek_second() == Some(&Kind::Punctuation(':'));
    let is_directive = matches!(cursor.peek(), Some(Kind::Word(word)) if word.starts_with('.'));
    if is_label {
        return label(cursor).map(|kind| vec![kind]);
    }
    if is_directive {
        return directive(cursor);
    }
    Ok(vec![StatementKind::Instruction(instruction(cursor)?)])
}

fn label(cursor: &mut Cursor) -> Result<StatementKind, PtxError> {
    let name = cursor.word("a label")?;
    cursor.expect(':')?;
    if cursor.take_word(".branchtargets") {
        let mut labels = Vec::new();
        while !cursor.take(';') {
            labels.push(cursor.word("a label")?);
            cursor.take(',');
        }
        return Ok(StatementKind::BranchTargets { name, labels });
    }
    if matches!(cursor.peek(), Some(Kind::Word(word)) if word.starts_with(".call")) {
        let what = "an indirect call".to_owned();
        return Err(cursor.refuse(Problem::Unsupported { what }));
    }
    Ok(StatementKind::Label(name))
}

fn directive(cursor: &mut Cursor) -> Result<Vec<StatementKind>, PtxError> {
    let directive = cursor.word("a directive")?;
    let space = match directive.as_str() {
        ".loc" | ".file" => {
            cursor.skip_line();
            return Ok(Vec::new());
        }
        ".pragma" => {
            cursor.skip_past(';')?;
            return Ok(Vec::new());
        }
        ".reg" => return registers(cursor).map(|kind| vec![kind]),
        ".shared" => VariableSpace::Shared,
        ".local" => VariableSpace::Local,
        ".param" => VariableSpace::Param,
        _ => return Err(cursor.unknown_directive(directive)),
    };
    let variables = variables::declaration(cursor, space)?;
    cursor.expect(';')?;
    Ok(variables.into_iter().map(StatementKind::Variable).collect())
}

fn registers(cursor: &mut Cursor) -> Result<StatementKind, PtxError> {
    let directive = cursor.word("a type")?;
    let ty = type_of(cursor, &directive)?;
    let mut names = Vec::new();
    loop {
        let name = cursor.word("a register's name")?;
        let count = if cursor.take('<') {
            let count = cursor.integer()? as u32;
            if !cursor.take('>') {
                return Err(cursor.unexpected_next("`>`"));
            }
            Some(count)
        } else {
            None
        };
        names.push((name, count));
        if !cursor.take(',') {
            break;
        }
    }
    cursor.expect(';')?;
    Ok(StatementKind::Registers { ty, names })
}

fn instruction(cursor: &mut Cursor) -> Result<Instruction, PtxError> {
    let line = cursor.line();
    let guard = if cursor.take('@') {
        let negated = cursor.take('!');
        Some(Guard { predicate: cursor.word("a predicate")?, negated })
    } else {
        None
    };
    let opcode = cursor.word("an opcode")?;
    let parts = opcode.split('.').map(str::to_owned).collect();
    let mut operands = Vec::new();
    while !cursor.take(';') {
        operands.push(operand(cursor)?);
        if !cursor.take(',') && !cursor.is_next(';') {
            return Err(cursor.unexpected_next("`,` or `;`"));
        }
    }
    Ok(Instruction { guard, mnemonic: Mnemonic { parts }, operands, line })
}

fn operand(cursor: &mut Cursor) -> Result<Operand, PtxError> {
    let first = single_operand(cursor)?;
    if cursor.take('|') {
        let second = single_operand(cursor)?;
        return Ok(Operand::Pair(Box::new(first), Box::new(second)));
    }
    Ok(first)
}

fn single_operand(cursor: &mut Cursor) -> Result<Operand, PtxError> {
    let is_negative = cursor.take('-');
    match cursor.next()? {
        Kind::Integer(value) if is_negative => Ok(Operand::Integer(value.wrapping_neg())),
        Kind::Single(bits) if is_negative => Ok(Operand::Single(bits ^ 1 << 31)),
        Kind::Double(bits) if is_negative => Ok(Operand::Double(bits ^ 1 << 63)),
        Kind::Integer(value) => Ok(Operand::Integer(value)),
        Kind::Single(bits) => Ok(Operand::Single(bits)),
        Kind::Double(bits) => Ok(Operand::Double(bits)),
        Kind::Punctuation('!') => Ok(Operand::Not(cursor.word("a predicate")?)),
        Kind::Punctuation('{') => Ok(Operand::Vector(list(cursor, '}')?)),
        Kind::Punctuation('[') => Ok(Operand::Memory(list(cursor, ']')?)),
        Kind::Punctuation('(') => Ok(Operand::Group(list(cursor, ')')?)),
        Kind::Word(word) if word == "_" => Ok(Operand::Sink),
        Kind::Word(word) => {
            // `a+8`, `a+-8` and `a-8`.
            if cursor.take('+') || cursor.is_next('-') {
                Ok(Operand::Offset(word, cursor.integer()?))
            } else {
                Ok(Operand::Name(word))
            }
        }
        other => Err(cursor.unexpected(other.text(), "an operand")),
    }
}

fn list(cursor: &mut Cursor, end: char) -> Result<Vec<Operand>, PtxError> {
    let mut operands = Vec::new();
    while !cursor.take(end) {
        operands.push(operand(cursor)?);
        if !cursor.take(',') && !cursor.is_next(end) {
            return Err(cursor.unexpected_next("`,` or the list's end"));
        }
    }
    Ok(operands)
}
