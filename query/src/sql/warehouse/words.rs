//! The words and signs of a query that both sides take for the same. Pure; its tests are [`super::guard`]'s.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Whitespace};

use crate::sql::error::SqlError;
use crate::sql::idents::Places;

/// Refuses words and signs of other meaning there than here, or of none.
pub fn check(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let mut before = &Token::EOF;
    for TokenWithSpan { token, .. } in tokens {
        let is_plain = match token {
            Token::Word(word) => match word.quote_style {
                None => word.value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
                // Some read a backslash in a name as the beginning of an escape.
                Some('"' | '`') => !word.value.contains(|c: char| c.is_control() || "\\\"'`".contains(c)),
                Some(_) => false,
            },
            // x'…' and b'…' have rules of their own.
            Token::SingleQuotedString(text) => !matches!(before, Token::Word(_)) && !text.contains('\0'),
            Token::Number(..)
            | Token::Comma
            | Token::Whitespace(_)
            | Token::DoubleEq
            | Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::StringConcat
            | Token::LParen
            | Token::RParen
            | Token::LBracket
            | Token::RBracket
            | Token::Period
            | Token::DoubleColon
            | Token::SemiColon
            | Token::Arrow => true,
            _ => false,
        };
        if !is_plain {
            let shown: String = token.to_string().chars().take(40).collect();
            return Err(SqlError::Refused(format!("{shown} is not allowed here; write it in plain SQL")));
        }
        before = token;
    }
    Ok(())
}

/// The words that are sent: without comments, and with columns for JSON names.
pub fn text(tokens: &[TokenWithSpan], places: &Places) -> String {
    let word = |token: &TokenWithSpan| match (&token.token, places.get(&token.span.start)) {
        (_, Some(name)) => (*name).to_owned(),
        (Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)), _) => {
            " ".to_owned()
        }
        (Token::SemiColon, _) => String::new(),
        (token, _) => token.to_string(),
    };
    tokens.iter().map(word).collect::<String>().trim().to_owned()
}
