//! values - words of the command line into values: the same units as in the configuration.

use std::time::Duration;

use crate::config::values;

/// "10KiB".
pub(super) fn size(text: &str) -> Result<usize, String> {
    let bytes = values::size(text).map_err(|error| error.to_string())?;
    usize::try_from(bytes).map_err(|_| format!("\"{text}\" is too large"))
}

/// "5s".
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    values::duration(text).map_err(|error| error.to_string())
}

/// Messages per second: "500/s", "30000/min", or a bare number of them per second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    if let Ok(number) = text.parse::<f64>()
        && number.is_finite()
        && number > 0.0
    {
        return Ok(number);
    }
    let rate = values::rate(text).map_err(|error| error.to_string())?;
    Ok(f64::from(rate.amount) / rate.period.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second() {
        assert_eq!(rate("500"), Ok(500.0));
        assert_eq!(rate("120/min"), Ok(2.0));
        for text in ["", "-1", "0", "inf", "NaN", "5/fortnight"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
