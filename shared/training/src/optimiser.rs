use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};

use crate::TrainingError;

/// How the learning rate goes: a linear rise, then half a cosine down to nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// Highest learning rate.
    pub(crate) peak: f64,
    /// Steps of the linear rise.
    pub(crate) warmup: usize,
    /// All steps.
    pub(crate) steps: usize,
}

impl Schedule {
    /// Learning rate of a step, counted from 0; 0 from [`Self::steps`] on.
    #[must_use]
    pub(crate) fn rate(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / span).min(1.0);
        self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

/// AdamW under a schedule, with the gradient's norm limited.
#[derive(Debug)]
pub(crate) struct Optimiser {
    variables: Vec<Var>,
    adam: AdamW,
    schedule: Schedule,
    step: usize,
    max_norm: f64,
}

impl Optimiser {
    /// For these variables.
    ///
    /// # Errors
    /// Those of candle.
    pub(crate) fn new(
        variables: Vec<Var>,
        schedule: Schedule,
        weight_decay: f64,
        max_norm: f64,
    ) -> Result<Self> {
        let params =
            ParamsAdamW { lr: schedule.rate(0), beta2: 0.98, weight_decay, ..ParamsAdamW::default() };
        Ok(Self { adam: AdamW::new(variables.clone(), params)?, variables, schedule, step: 0, max_norm })
    }

    /// Goes one step down the gradient of `loss`, a scalar. Returns the loss.
    ///
    /// # Errors
    /// [`TrainingError::Diverged`] where the loss is not finite.
    pub(crate) fn descend(&mut self, loss: &Tensor) -> std::result::Result<f32, TrainingError> {
        let value = loss.to_scalar::<f32>()?;
        if !value.is_finite() {
            return Err(TrainingError::Diverged { step: self.step, loss: value });
        }
        let mut gradients = loss.backward()?;
        self.limit(&mut gradients)?;
        self.adam.set_learning_rate(self.schedule.rate(self.step));
        self.adam.step(&gradients)?;
        self.step += 1;
        Ok(value)
    }

    fn limit(&self, gradients: &mut GradStore) -> Result<()> {
        let mut square = 0f64;
        for variable in &self.variables {
            if let Some(gradient) = gradients.get(variable) {
                square += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = square.sqrt();
        if norm > self.max_norm {
            for variable in &self.variables {
                if let Some(gradient) = gradients.remove(variable) {
                    gradients.insert(variable, (gradient * (self.max_norm / norm))?);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_nothing() {
        let schedule = Schedule { peak: 2.0, warmup: 4, steps: 20 };
        assert_eq!(schedule.rate(0), 0.5);
        assert_eq!(schedule.rate(3), 2.0);
        assert_eq!(schedule.rate(4), 2.0);
        assert!((schedule.rate(12) - 1.0).abs() < 1e-12);
        assert!(schedule.rate(20).abs() < 1e-12);
        assert!((4..20).all(|step| schedule.rate(step + 1) < schedule.rate(step)));
    }

    #[test]
    fn a_loss_that_is_not_a_number_stops_training() {
        let variable = Var::from_tensor(&Tensor::new(-1f32, &Device::Cpu).unwrap()).unwrap();
        let schedule = Schedule { peak: 0.1, warmup: 1, steps: 2 };
        let mut optimiser = Optimiser::new(vec![variable.clone()], schedule, 0.0, 1.0).unwrap();
        let loss = variable.log().unwrap();
        assert!(matches!(optimiser.descend(&loss), Err(TrainingError::Diverged { step: 0, .. })));
    }

    #[test]
    fn descending_reduces_a_quadratic() {
        let variable = Var::from_tensor(&Tensor::new(&[3f32, -4.0], &Device::Cpu).unwrap()).unwrap();
        let schedule = Schedule { peak: 0.2, warmup: 1, steps: 100 };
        let mut optimiser = Optimiser::new(vec![variable.clone()], schedule, 0.0, 1.0).unwrap();
        for _ in 0..100 {
            let loss = variable.sqr().unwrap().sum_all().unwrap();
            optimiser.descend(&loss).unwrap();
        }
        assert!(variable.abs().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap() < 0.2);
    }
}
