//! Z85 (ZeroMQ RFC 32): four bytes, big end first, as five digits of base 85.
//!
//! Our own, because libzmq's decoder takes characters that are none of Z85's.

use super::KeyTextError;

const DIGITS: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

pub(super) fn encode(key: &[u8; 32]) -> String {
    let mut text = String::with_capacity(40);
    for word in key.as_chunks::<4>().0 {
        let mut rest = u32::from_be_bytes(*word);
        let mut digits = [0; 5];
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(rest % 85) as usize];
            rest /= 85;
        }
        text.extend(digits.map(char::from));
    }
    text
}

pub(super) fn decode(text: &str) -> Result<[u8; 32], KeyTextError> {
    let chars = text.chars().count();
    if chars != 40 {
        return Err(KeyTextError::Length { chars });
    }
    let mut key = [0; 32];
    let mut number = 0_u64;
    for (index, character) in text.chars().enumerate() {
        let digit = DIGITS.iter().position(|&digit| char::from(digit) == character);
        let digit = digit.ok_or(KeyTextError::Character { character, position: index + 1 })?;
        number = number * 85 + digit as u64;
        if index % 5 == 4 {
            let word = u32::try_from(number).map_err(|_| KeyTextError::Range { position: index - 3 })?;
            key[index / 5 * 4..][..4].copy_from_slice(&word.to_be_bytes());
            number = 0;
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test key pair's public half in ZeroMQ's own manual of CURVE.
    const PUBLIC: &str = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";

    #[test]
    fn agrees_with_libzmq() {
        let ours = decode(PUBLIC).unwrap();
        assert_eq!(ours.to_vec(), zmq::z85_decode(PUBLIC).unwrap());
        assert_eq!(encode(&ours), PUBLIC);
        assert_eq!(decode(&encode(&[255; 32])), Ok([255; 32]));
        assert_eq!(decode(&encode(&[0; 32])), Ok([0; 32]));
    }

    #[test]
    fn names_what_is_wrong() {
        assert_eq!(decode("abc"), Err(KeyTextError::Length { chars: 3 }));
        let comma = PUBLIC.replacen('<', ",", 1);
        assert_eq!(decode(&comma), Err(KeyTextError::Character { character: ',', position: 10 }));
        let umlaut = PUBLIC.replacen('Y', "ü", 1);
        assert_eq!(decode(&umlaut), Err(KeyTextError::Character { character: 'ü', position: 1 }));
        let big = format!("{}#####", &PUBLIC[..35]);
        assert_eq!(decode(&big), Err(KeyTextError::Range { position: 36 }));
    }
}
