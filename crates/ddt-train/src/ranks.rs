//! Ranks of a run: whose micro-batches and parameters are which, and the exchange of gradients and weights.

use std::{error::Error, fmt::Display, ops::Range, sync::Arc};

use candle_core::{Tensor, Var};
use ddt_dist::{Group, Halving, agree, own_run, tree};
use rayon::prelude::*;

use crate::{
    config::TrainConfig,
    error::{TrainError, in_full},
    objective::{Gradients, Parameters},
    optimiser::with_values,
};

/// The ranks of a run. Each sums the gradients of its micro-batches, and owns the optimiser state of a run of
/// parameters.
#[derive(Debug)]
pub(crate) struct Ranks {
    group: Arc<dyn Group>,
    halving: Halving,
    /// Of a step, those that this rank computes.
    micro_batches: Range<usize>,
    /// First element of each parameter in the network as one vector, and the vector's end.
    firsts: Vec<usize>,
}

/// Gradients summed over the batch. With one rank all are valid, else only those of the own parameters.
pub(crate) enum Summed {
    Tensors(Vec<Tensor>),
    Flat(Vec<f32>),
}

/// The result of every rank, or the error of the lowest that failed; `say` tells the others something about it.
pub(crate) fn agree_on<T, E: Error + From<TrainError>>(
    group: &dyn Group,
    own: Result<T, E>,
    say: impl FnOnce(&T) -> Vec<u8>,
) -> Result<(T, Vec<Vec<u8>>), E> {
    let said = own.as_ref().map(say).map_err(|it| in_full(it));
    let said = said.as_ref().map(Vec::as_slice).map_err(|it| it as &dyn Display);
    match (agree(group, said), own) {
        // With one rank its own error, of its own kind.
        (_, Err(error)) if group.size() == 1 => Err(error),
        (Err(failed), _) => Err(TrainError::Rank(failed).into()),
        (Ok(heard), own) => own.map(|own| (own, heard)),
    }
}

/// [`agree_on`] nothing but that all is well.
///
/// A failure that the ranks know already is not told again: so one call around several is enough.
pub(crate) fn agreed<T>(group: &dyn Group, own: Result<T, TrainError>) -> Result<T, TrainError> {
    match own {
        // Ranks stop together.
        Err(known @ (TrainError::Rank(_) | TrainError::Stopped)) => Err(known),
        own => agree_on(group, own, |_| Vec::new()).map(|it| it.0),
    }
}

impl Ranks {
    /// # Errors
    /// [`TrainError::Group`] for a number of ranks that cannot share a step's micro-batches.
    pub(crate) fn new(
        group: Arc<dyn Group>,
        parameters: &Parameters,
        cfg: &TrainConfig,
    ) -> Result<Self, TrainError> {
        let (rank, ranks, what) = (group.rank(), group.size(), "micro-batches of a step");
        let micro_batches = own_run(rank, ranks, cfg.micro_batches(), what)?;
        let sizes: Vec<usize> = parameters.iter().map(|it| it.1.elem_count()).collect();
        let mut firsts = vec![0];
        firsts.extend(sizes.iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        }));
        Ok(Self { halving: Halving::new(group.as_ref(), &sizes), group, micro_batches, firsts })
    }

    pub(crate) fn group(&self) -> &Arc<dyn Group> {
        &self.group
    }

    fn is_alone(&self) -> bool {
        self.group.size() == 1
    }

    /// The micro-batches of a step that this rank computes.
    pub(crate) fn micro_batches(&self) -> Range<usize> {
        self.micro_batches.clone()
    }

    /// The parameters whose optimiser state this rank has.
    pub(crate) fn own(&self) -> Range<usize> {
        self.halving.own()
    }

    /// Where a parameter is in the network as one vector.
    fn place(&self, parameter: usize) -> Range<usize> {
        self.firsts[parameter]..self.firsts[parameter + 1]
    }

    /// Adds up the loss and its parts in the order of the tree, if every rank has gradients. Also returns the lowest
    /// rank whose loss is not finite, else 0.
    pub(crate) fn meet<E: Error + From<TrainError>>(
        &self,
        own: Result<Gradients, E>,
    ) -> Result<(Gradients, usize), E> {
        let say = |it: &Gradients| bytes_of(it.numbers());
        let (mut own, heard) = agree_on(self.group.as_ref(), own, say)?;
        let told: Vec<Vec<f64>> = heard.iter().map(|it| numbers(it)).collect();
        let culprit = told.iter().position(|it| it.first().is_some_and(|loss| !loss.is_finite()));
        let mut join = |a: Vec<f64>, b: Vec<f64>| Ok::<_, E>(a.iter().zip(&b).map(|(a, b)| a + b).collect());
        let sums = tree(0..told.len(), &mut |rank| Ok(told[rank].clone()), &mut join)?;
        own.set_numbers(&sums);
        Ok((own, culprit.unwrap_or_default()))
    }

    /// Adds up the gradients over the ranks.
    pub(crate) fn sum(&self, gradients: Vec<Tensor>) -> Result<Summed, TrainError> {
        if self.is_alone() {
            return Ok(Summed::Tensors(gradients));
        }
        let mut flat = Vec::with_capacity(self.firsts.last().copied().unwrap_or_default());
        for gradient in gradients {
            with_values(&gradient, |it| flat.extend_from_slice(it))?;
        }
        self.halving.reduce_scatter(self.group.as_ref(), &mut flat, &self.firsts)?;
        Ok(Summed::Flat(flat))
    }

    /// Calls `f` with the gradient of one of the own parameters.
    pub(crate) fn with_gradient<T>(
        &self,
        summed: &Summed,
        parameter: usize,
        f: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, TrainError> {
        match summed {
            Summed::Tensors(all) => with_values(&all[parameter], f),
            Summed::Flat(all) => Ok(f(&all[self.place(parameter)])),
        }
    }

    /// Euclidean norm of the gradient of all parameters, in f64: each parameter's squares first, then in their order.
    pub(crate) fn norm(&self, summed: &Summed) -> Result<f64, TrainError> {
        let square =
            |it| self.with_gradient(summed, it, |values| values.iter().map(|x| f64::from(*x).powi(2)).sum());
        let own: Vec<f64> = self.own().into_par_iter().map(square).collect::<Result<_, _>>()?;
        let mut squares = vec![0.0; self.firsts.len() - 1];
        squares[self.own()].copy_from_slice(&own);
        let each: Vec<usize> = (0..self.firsts.len()).collect();
        self.halving.all_gather(self.group.as_ref(), &mut squares, &each)?;
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Gives every rank the parameters that others have updated.
    pub(crate) fn share(&self, parameters: &Parameters, summed: Summed) -> Result<(), TrainError> {
        // The gradients are used: their memory takes the weights.
        let Summed::Flat(mut flat) = summed else { return Ok(()) };
        let vars: Vec<&Var> = parameters.iter().map(|it| it.1).collect();
        for at in self.own() {
            with_values(vars[at], |it| flat[self.place(at)].copy_from_slice(it))?;
        }
        self.halving.all_gather(self.group.as_ref(), &mut flat, &self.firsts)?;
        for (at, var) in vars.iter().enumerate().filter(|it| !self.own().contains(&it.0)) {
            var.set(&Tensor::from_slice(&flat[self.place(at)], var.shape(), var.device())?)?;
        }
        Ok(())
    }

    /// A tensor per parameter from the numbers of the own parameters.
    pub(crate) fn gathered(
        &self,
        parameters: &Parameters,
        own: &[&[f32]],
    ) -> Result<Vec<Tensor>, TrainError> {
        let mut flat = Vec::new();
        if !self.is_alone() {
            flat = vec![0f32; self.firsts.last().copied().unwrap_or_default()];
            for (at, values) in self.own().zip(own) {
                flat[self.place(at)].copy_from_slice(values);
            }
            self.halving.all_gather(self.group.as_ref(), &mut flat, &self.firsts)?;
        }
        let tensor = |(at, (_, var)): (usize, (&str, &Var))| {
            let values = if self.is_alone() { own[at] } else { &flat[self.place(at)] };
            Ok(Tensor::from_slice(values, var.shape(), var.device())?)
        };
        parameters.iter().enumerate().map(tensor).collect()
    }
}

/// Numbers that a rank tells the others.
pub(crate) fn bytes_of(numbers: impl IntoIterator<Item = f64>) -> Vec<u8> {
    numbers.into_iter().flat_map(f64::to_le_bytes).collect()
}

/// The numbers in [`bytes_of`] them.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<f64> {
    let number = |it: &[u8]| it.try_into().map(f64::from_le_bytes).unwrap_or(f64::NAN);
    bytes.chunks(8).map(number).collect()
}
