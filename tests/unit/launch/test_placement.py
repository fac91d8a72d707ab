"""Which node takes which bundle, and what is refused with which numbers."""

from collections.abc import Mapping, Sequence

import pytest

from launch.cluster import countable
from launch.compose import compose
from launch.placement import Bundle, Misfit, Node, Placement, covers, place, total
from launch.plan import bundles, plan_text
from launch.preflight_placement import check_fits, node_lines
from lwz_ray.config import Config
from lwz_ray.errors import UserError

EIGHT = {"CPU": 64.0, "GPU": 8.0}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def gpus(count: int, each: float) -> list[Bundle]:
    return [{"CPU": 1.0, "GPU": each} for _ in range(count)]


def placed(rooms: Mapping[str, Sequence[Bundle]], capacities: Sequence[Bundle]) -> Placement:
    found = place(rooms, capacities)
    assert isinstance(found, Placement), found
    for node, capacity in enumerate(capacities):
        held = [rooms[r][i] for r, where in found.nodes.items() for i, n in enumerate(where) if n == node]
        assert covers(capacity, total(held)), (node, held)
    return found


def nodes_of(*totals: Bundle, free: Sequence[Bundle] = ()) -> list[Node]:
    return [Node(f"node {i + 1}", t, free[i] if free else t) for i, t in enumerate(totals)]


def config_of(*words: str) -> Config:
    return compose(["run=paper_32b", *words])


def test_the_paper_gets_three_learner_nodes_four_engines_and_a_node_of_scorers():
    found = placed(bundles(config_of()), [EIGHT] * 8)
    assert found.strategies == {"actors": "SPREAD", "rewards": "SPREAD", "learners": "PACK"}
    assert found.order == ("learners", "actors", "rewards")
    assert found.nodes["learners"] == [0] * 8 + [1] * 8 + [2] * 8
    assert found.nodes["actors"] == [3, 4, 5, 6]
    assert found.nodes["rewards"] == [7, 7]


def test_learners_that_fit_one_node_must_have_one_and_engines_spread():
    found = placed({"learners": gpus(4, 1), "actors": gpus(3, 1)}, [EIGHT, EIGHT])
    assert found.strategies == {"learners": "STRICT_PACK", "actors": "SPREAD"}
    assert found.nodes == {"learners": [0, 0, 0, 0], "actors": [1, 0, 1]}


def test_learners_give_way_to_an_engine_that_needs_the_whole_large_node():
    found = placed({"learners": gpus(4, 1), "actors": gpus(1, 8)}, [EIGHT, {"CPU": 64.0, "GPU": 4.0}])
    assert found.order == ("actors", "learners")
    assert found.nodes == {"actors": [0], "learners": [1, 1, 1, 1]}
    assert found.strategies["learners"] == "STRICT_PACK"


def test_learners_are_split_where_no_order_keeps_them_together():
    found = placed({"learners": gpus(4, 1), "actors": gpus(2, 3)}, [{"CPU": 9.0, "GPU": 5.0}] * 2)
    assert found.strategies["learners"] == "PACK"
    assert sorted(found.nodes["learners"]) == [0, 0, 1, 1]


def test_custom_resources_bind_a_room_to_its_nodes():
    rooms = {"learners": [{"CPU": 1.0, "learner": 1.0}] * 2, "actors": [{"CPU": 1.0, "rollout": 1.0}]}
    found = placed(rooms, [{"CPU": 4.0, "rollout": 1.0}, {"CPU": 4.0, "learner": 2.0}])
    assert found.nodes == {"learners": [1, 1], "actors": [0]}


def test_a_room_may_be_bound_by_what_ray_names_a_node_by():
    here = countable({"CPU": 4.0, "memory": 9e9, "node:10.0.0.1": 1.0, "accelerator_type:H100": 1.0})
    assert here == {"CPU": 4.0, "node:10.0.0.1": 1.0, "accelerator_type:H100": 1.0}
    rooms = {"actors": [{"CPU": 1.0, "accelerator_type:H100": 0.001}]}
    assert check_fits(config_of(), rooms, nodes_of({"CPU": 9.0}, here)).nodes == {"actors": [1]}


def test_fractions_add_up_as_ray_counts_them():
    tenths = {"actors": [{"CPU": 0.1}] * 10}
    assert isinstance(place(tenths, [{"CPU": 1.0}]), Placement)
    one_more = place({"actors": [{"CPU": 0.1}] * 11}, [{"CPU": 1.0}])
    assert isinstance(one_more, Misfit)
    assert (one_more.room, one_more.index) == ("actors", 10)


def test_what_other_jobs_hold_counts_where_there_is_enough_without_it():
    nodes = nodes_of({"CPU": 2.0}, {"CPU": 2.0}, free=[{"CPU": 0.0}, {"CPU": 2.0}])
    assert check_fits(config_of(), {"learners": [{"CPU": 1.0}] * 2}, nodes).nodes == {"learners": [1, 1]}
    assert check_fits(config_of(), {"learners": [{"CPU": 1.0}] * 3}, nodes).nodes == {"learners": [0, 0, 1]}


@pytest.mark.parametrize(
    ("rooms", "nodes", "line"),
    [
        (
            {"actors": gpus(2, 8), "learners": gpus(4, 1)},
            nodes_of(EIGHT, EIGHT),
            "the run needs 20 GPUs (actors 16, learners 4), the cluster has 16: lower replicas, ranks or num_gpus, or "
            "add nodes",
        ),
        (
            {"actors": [{"CPU": 1.0, "rollout": 1.0}] * 3, "learners": [{"CPU": 1.0}]},
            nodes_of({"CPU": 8.0, "rollout": 2.0}),
            "the run needs 3 'rollout' (actors 3), the cluster has 2: start nodes with "
            "`ray start --resources='{\"rollout\": 3}'`, or change actors.resources",
        ),
        (
            {"actors": gpus(1, 8)},
            nodes_of({"CPU": 9.0, "GPU": 4.0}, {"CPU": 9.0, "GPU": 4.0}),
            "one bundle of actors needs 8 GPUs on one node, the largest node has 4: a tensor-parallel group is not "
            "split over nodes; lower actors.tensor_parallel_size=8 and actors.num_gpus to at most 4, or use larger "
            "nodes",
        ),
        (
            {"rewards": [{"CPU": 6.0}] * 2},
            nodes_of({"CPU": 5.0}, {"CPU": 5.0}, {"CPU": 5.0}),
            "one bundle of rewards needs 6 CPUs on one node, the largest node has 5: lower rewards.num_cpus, or use "
            "larger nodes",
        ),
        (
            {"actors": [{"CPU": 3.0}] * 3},
            nodes_of({"CPU": 5.0}, {"CPU": 5.0}),
            "bundle 3 of actors needs 3 CPUs on one node; when the others have theirs, the nodes have left: node 1 to "
            "node 2 (2 nodes): 2 of 5 CPUs. Make its bundle smaller, lower replicas or ranks, or add nodes",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(rooms: dict[str, list[Bundle]], nodes: list[Node], line: str):
    with pytest.raises(UserError) as refusal:
        check_fits(config_of(), rooms, nodes)
    assert str(refusal.value) == line


def test_a_placement_is_told_node_by_node():
    rooms = {"learners": gpus(2, 1), "actors": gpus(2, 2)}
    assert node_lines({"learners": [0, 0], "actors": [1, 2]}, rooms, nodes_of(*[EIGHT] * 4)) == [
        "node 1: learners 2 (2 of 64 CPUs, 2 of 8 GPUs)",
        "node 2 to node 3 (2 nodes): actors 1 (1 of 64 CPUs, 2 of 8 GPUs)",
        "node 4: nothing",
    ]


def test_the_plan_shows_the_placement():
    text = plan_text(config_of())
    assert "  node by node, as it is reserved: learners PACK, actors SPREAD, rewards SPREAD\n" in text
    assert "    node 1 to node 3 (3 nodes): learners 8 (48 CPUs, 8 of 8 GPUs)\n" in text
    assert "    node 4 to node 7 (4 nodes): actors 1 (8 CPUs, 8 of 8 GPUs)\n" in text
    assert "    node 8: rewards 2 (16 CPUs, 8 of 8 GPUs)\n" in text


def test_the_plan_refuses_pieces_that_do_not_fit_although_the_sum_does():
    words = ("actors.replicas=2", "rewards.replicas=4", "rewards.num_gpus=5", "learners.ranks=28")
    text = plan_text(config_of(*words))
    assert "64 GPUs; the cluster has 8 nodes x 8 = 64 GPUs: fits\n" in text  # 16 + 20 + 28
    assert "does not fit" not in text
    text = plan_text(config_of("actors.replicas=6", "rewards.replicas=3", "rewards.num_gpus=5", "learners.ranks=1"))
    assert "64 GPUs; the cluster has 8 nodes x 8 = 64 GPUs: fits\n" in text  # 48 + 15 + 1
    assert "  does not fit: bundle 3 of rewards needs 5 GPUs on one node" in text


def test_the_critic_lies_where_the_learners_may():
    config = compose(["run=smoke_ppo", "learners.resources={learner: 0.5}", "rewards.resources.scorer=1"])
    rooms = bundles(config)
    assert rooms["critic"] == [{"CPU": 0.2, "learner": 0.5}]
    assert rooms["learners"] == [{"CPU": 0.4, "learner": 0.5}] * 2
    assert rooms["rewards"] == [{"CPU": 0.1, "scorer": 1.0}] * 2
    assert rooms["actors"] == [{"CPU": 0.8}]


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory"])
def test_a_resource_of_rays_own_is_refused(name: str):
    with pytest.raises(UserError, match=rf"actors\.resources names '{name}': custom resources only"):
        compose(["run=smoke_cpu", f"actors.resources={{{name}: 1}}"])


def test_a_wrong_amount_names_the_key():
    with pytest.raises(UserError, match=r"learners\.resources\.learner=-1 \(int\): needs a number > 0"):
        compose(["run=smoke_cpu", "learners.resources={learner: -1}"])
