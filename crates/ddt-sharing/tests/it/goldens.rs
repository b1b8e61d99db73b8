//! Against matrices, plans and costs that numpy computed.

use ddt_parity::{check, golden};
use ddt_sharing::{Planner, Similarity, optimal_plan, plan_cost};

#[test]
fn plans_and_costs() {
    check("sharing_plan").unwrap();
}

#[test]
fn similarity_of_states_and_its_plan() {
    check("sharing_states").unwrap();
}

#[test]
fn one_planner_answers_every_budget() {
    let matrix = golden("sharing_plan").unwrap().tensor("in.similarity").unwrap();
    let num_steps = matrix.dim(0).unwrap();
    let values = matrix.flatten_all().unwrap().to_vec1().unwrap();
    let similarity = Similarity::from_matrix(values, num_steps).unwrap();
    let planner = Planner::new(&similarity, num_steps).unwrap();
    for budget in [1, 2, 13, 50, num_steps] {
        let found = planner.plan(budget).unwrap();
        assert_eq!(plan_cost(&similarity, &found.plan).unwrap(), found.cost);
        assert_eq!(optimal_plan(&similarity, budget).unwrap(), found);
    }
}
