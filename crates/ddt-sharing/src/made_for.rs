//! The model and sampler settings that a measurement or a plan belongs to.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::PlanError;

/// Relative difference at which numbers still count as equal: they may have been computed in different ways.
const TOLERANCE: f64 = 1e-9;

/// A model and the sampler settings that its self-conditions depend on.
///
/// Settings have names, and values of any serialisable type. They are not interpreted, only compared: a plan is
/// good for a sampler with equal settings.
///
/// ```
/// use ddt_sharing::MadeFor;
///
/// let settings = |num_steps: usize| MadeFor::new("ddt-b2").with("grid", &("even", num_steps)).unwrap();
/// assert!(settings(50).check(&settings(50)).is_ok());
/// assert!(settings(50).check(&settings(25)).unwrap_err().to_string().contains("grid.1 50, wanted 25"));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MadeFor {
    model: String,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

impl MadeFor {
    /// A model without settings, by the name or hash of its weights.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), settings: Map::new() }
    }

    /// Adds or replaces a setting, such as `grid`, `guidance` or `solver`.
    ///
    /// # Errors
    /// [`PlanError::Invalid`] if `value` has no JSON form.
    pub fn with(mut self, name: &str, value: &impl Serialize) -> Result<Self, PlanError> {
        let value = serde_json::to_value(value).map_err(|error| {
            PlanError::invalid(format!("setting {name}"), "a value with a JSON form", error)
        })?;
        self.settings.insert(name.to_owned(), value);
        Ok(self)
    }

    /// The same settings of another model.
    pub fn with_model(self, model: impl Into<String>) -> Self {
        Self { model: model.into(), ..self }
    }

    /// Name or hash of the model's weights.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// A setting as a value of type `T`; `None` if it is absent or of another form.
    pub fn setting<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_value(self.settings.get(name)?.clone()).ok()
    }

    /// Refuses a sampler with another model or other settings; a setting that one side lacks is not compared.
    ///
    /// # Errors
    /// [`PlanError::WrongSetting`] naming the first difference and both its values.
    pub fn check(&self, wanted: &MadeFor) -> Result<(), PlanError> {
        let difference = if self.model == wanted.model {
            difference("", &Value::Object(self.settings.clone()), &Value::Object(wanted.settings.clone()))
        } else {
            Some(("model".to_owned(), self.model.clone(), wanted.model.clone()))
        };
        match difference {
            None => Ok(()),
            Some((setting, made_for, wanted)) => Err(PlanError::WrongSetting { setting, made_for, wanted }),
        }
    }

    /// Refuses a nameless model, and a time grid of another number of steps.
    pub(crate) fn validate(&self, num_steps: usize) -> Result<(), PlanError> {
        if self.model.is_empty() {
            return Err(PlanError::invalid("the model", "a name", "an empty one"));
        }
        match self.settings.get("grid").and_then(|it| it.get("num_steps")) {
            Some(grid) if grid.as_u64() != Some(num_steps as u64) => {
                Err(PlanError::invalid("the number of steps of the grid", num_steps, grid))
            }
            _ => Ok(()),
        }
    }
}

/// Path and values of the first difference.
fn difference(path: &str, made_for: &Value, wanted: &Value) -> Option<(String, String, String)> {
    let inside = |name: &dyn std::fmt::Display| {
        if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
    };
    match (made_for, wanted) {
        (Value::Object(a), Value::Object(b)) => a
            .iter()
            .filter_map(|(name, a)| Some((name, a, b.get(name)?)))
            .find_map(|(name, a, b)| difference(&inside(name), a, b)),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| difference(&inside(&at), a, b))
        }
        (Value::Number(a), Value::Number(b))
            if a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| nearly_equal(a, b)) =>
        {
            None
        }
        (a, b) if a == b => None,
        (a, b) => Some((path.to_owned(), a.to_string(), b.to_string())),
    }
}

/// Whether two numbers are equal up to [`TOLERANCE`].
pub(crate) fn nearly_equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= TOLERANCE * a.abs().max(b.abs())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn published() -> MadeFor {
        let settings = json!({
            "model": "ddt-xl-2-22en6de",
            "grid": {"num_steps": 250, "last_step": 0.04, "timeshift": 1.0},
            "guidance": {"scale": 2.0, "interval": [0.3, 1.0]},
            "solver": "euler",
        });
        serde_json::from_value(settings).unwrap()
    }

    #[test]
    fn every_difference_is_named_from_both_sides() {
        let guidance = |low: f64| json!({"scale": 2, "interval": [low, 1.0]});
        let grid = |num_steps: usize, last_step: f64| json!({"num_steps": num_steps, "last_step": last_step});
        for (wanted, named) in [
            (
                MadeFor { model: "ddt-b-2".to_owned(), ..published() },
                "model ddt-xl-2-22en6de, wanted ddt-b-2",
            ),
            (published().with("grid", &grid(50, 0.04)).unwrap(), "grid.num_steps 250, wanted 50"),
            (published().with("grid", &grid(250, 0.004)).unwrap(), "grid.last_step 0.04, wanted 0.004"),
            (published().with("guidance", &guidance(0.2)).unwrap(), "guidance.interval.0 0.3, wanted 0.2"),
            (published().with("guidance", &f64::NAN).unwrap(), "wanted null"),
            (published().with("solver", &"adams").unwrap(), "solver \"euler\", wanted \"adams\""),
        ] {
            let error = published().check(&wanted).unwrap_err();
            assert!(matches!(error, PlanError::WrongSetting { .. }));
            assert!(error.to_string().contains(named), "{error}");
        }
        // Rounding, and settings that one side does not state.
        for wanted in [
            published(),
            published().with("grid", &grid(250, 1.0 - 0.96)).unwrap(),
            published().with("seed", &3).unwrap(),
            MadeFor::new("ddt-xl-2-22en6de"),
        ] {
            published().check(&wanted).unwrap();
            wanted.check(&published()).unwrap();
        }
    }

    #[test]
    fn settings_are_read_back_and_validated() {
        assert_eq!(published().setting::<String>("solver").as_deref(), Some("euler"));
        assert_eq!(published().setting::<f64>("solver"), None);
        assert_eq!(published().setting::<f64>("noise"), None);
        published().validate(250).unwrap();
        assert!(published().validate(249).unwrap_err().to_string().contains("must be 249, got 250"));
        let nameless = MadeFor { model: String::new(), ..published() };
        assert!(nameless.validate(250).unwrap_err().to_string().contains("model"));
        assert_eq!(serde_json::to_value(published()).unwrap()["grid"]["timeshift"], json!(1.0));
    }
}
