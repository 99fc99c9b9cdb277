//! One line of a configuration file (`guc-file.l`).

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Blank, or a comment alone.
    Nothing,
    /// A setting or a directive, with where its value stands in the line.
    Setting {
        name: String,
        value: String,
        value_span: std::ops::Range<usize>,
    },
}

/// Reads one line, without its end.
pub(super) fn read_line(line: &str) -> Result<Line, String> {
    let mut position = skip_blanks(line, 0);
    if at_end(line, position) {
        return Ok(Line::Nothing);
    }
    let name_start = position;
    position = name_end(line, position);
    if position == name_start {
        return Err(format!(
            "no setting can begin with {:?}",
            line[position..].chars().next().unwrap_or(' ')
        ));
    }
    let name = line[name_start..position].to_owned();
    position = skip_blanks(line, position);
    if line[position..].starts_with('=') {
        position = skip_blanks(line, position + 1);
    }
    if at_end(line, position) {
        return Err(format!("\"{name}\" has no value"));
    }
    let value_start = position;
    let (value, value_end) = read_value(line, position)?;
    position = skip_blanks(line, value_end);
    if !at_end(line, position) {
        return Err(format!(
            "unexpected text after the value of \"{name}\": {}",
            line[position..].trim_end()
        ));
    }
    Ok(Line::Setting {
        name,
        value,
        value_span: value_start..value_end,
    })
}

fn skip_blanks(line: &str, from: usize) -> usize {
    from + line[from..].len()
        - line[from..]
            .trim_start_matches([' ', '\t', '\r', '\x0c', '\x0b'])
            .len()
}

fn at_end(line: &str, position: usize) -> bool {
    line[position..].is_empty() || line[position..].starts_with('#')
}

fn is_letter(character: char) -> bool {
    character.is_ascii_alphabetic() || character == '_' || !character.is_ascii()
}

/// `ID` or `QUALIFIED_ID`.
fn name_end(line: &str, start: usize) -> usize {
    let mut end = start;
    let mut begins_part = true;
    for (offset, character) in line[start..].char_indices() {
        let fits = if begins_part {
            is_letter(character)
        } else {
            is_letter(character) || character.is_ascii_digit() || character == '$' || character == '.'
        };
        if !fits {
            break;
        }
        begins_part = character == '.';
        end = start + offset + character.len_utf8();
    }
    end
}

fn read_value(line: &str, start: usize) -> Result<(String, usize), String> {
    let rest = &line[start..];
    if let Some(body) = rest.strip_prefix('\'') {
        let end = quoted_end(body).ok_or_else(|| "a quoted value never ends".to_owned())?;
        return Ok((unescape(&body[..end]), start + 1 + end + 1));
    }
    let end = rest
        .find(|character: char| !is_unquoted(character))
        .unwrap_or(rest.len());
    let value = &rest[..end];
    let is_word = value.starts_with(|first: char| is_letter(first))
        && value.chars().all(|character| {
            is_letter(character) || character.is_ascii_digit() || "-._:/".contains(character)
        });
    if is_word || is_number(value) {
        Ok((value.to_owned(), start + end))
    } else {
        Err(format!(
            "the value {} needs quotes",
            rest.split([' ', '\t', '#']).next().unwrap_or_default()
        ))
    }
}

fn is_unquoted(character: char) -> bool {
    is_letter(character) || character.is_ascii_digit() || "-+._:/".contains(character)
}

/// `INTEGER` (decimal or hexadecimal, with a unit's letters) or `REAL`.
fn is_number(value: &str) -> bool {
    let unsigned = value.strip_prefix(['+', '-']).unwrap_or(value);
    if let Some(digits) = unsigned
        .strip_prefix("0x")
        .or_else(|| unsigned.strip_prefix("0X"))
    {
        let end = digits
            .find(|digit: char| !digit.is_ascii_hexdigit())
            .unwrap_or(digits.len());
        return end > 0 && digits[end..].chars().all(|unit| unit.is_ascii_alphabetic());
    }
    let whole = unsigned
        .find(|digit: char| !digit.is_ascii_digit())
        .unwrap_or(unsigned.len());
    let after = &unsigned[whole..];
    if after.chars().all(|unit| unit.is_ascii_alphabetic()) && whole > 0 {
        return true;
    }
    let Some(fraction) = after.strip_prefix('.') else {
        // An exponent without a point.
        return whole > 0 && is_exponent(after);
    };
    let digits = fraction
        .find(|digit: char| !digit.is_ascii_digit())
        .unwrap_or(fraction.len());
    let rest = &fraction[digits..];
    (whole > 0 || digits > 0) && (rest.is_empty() || is_exponent(rest))
}

fn is_exponent(text: &str) -> bool {
    text.strip_prefix(['e', 'E']).is_some_and(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
    })
}

/// Where the closing quote stands: a doubled quote and a backslash with what follows belong to the value.
fn quoted_end(body: &str) -> Option<usize> {
    let bytes = body.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        match bytes[index] {
            b'\\' => index += 2,
            b'\'' if bytes.get(index + 1) == Some(&b'\'') => index += 2,
            b'\'' => return Some(index),
            _ => index += 1,
        }
    }
    None
}

/// `DeescapeQuotedString` of `guc-file.l`.
fn unescape(body: &str) -> String {
    let mut bytes: Vec<u8> = Vec::with_capacity(body.len());
    let mut rest = body.bytes().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' => match rest.next() {
                Some(b'b') => bytes.push(8),
                Some(b'f') => bytes.push(12),
                Some(b'n') => bytes.push(b'\n'),
                Some(b'r') => bytes.push(b'\r'),
                Some(b't') => bytes.push(b'\t'),
                Some(digit @ b'0'..=b'7') => {
                    let mut code = u32::from(digit - b'0');
                    for _ in 0..2 {
                        match rest.next_if(|digit| (b'0'..=b'7').contains(digit)) {
                            Some(digit) => code = code * 8 + u32::from(digit - b'0'),
                            None => break,
                        }
                    }
                    bytes.push((code & 0xff) as u8);
                }
                Some(other) => bytes.push(other),
                None => {}
            },
            b'\'' => {
                // The second of a doubled quote.
                rest.next();
                bytes.push(b'\'');
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
