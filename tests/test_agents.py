"""What the agents of all algorithms have in common: devices, replaced and frozen parts, state, acting, evaluation."""

import copy

import contract_envs
import numpy as np
import pytest
import torch

from conftest import (  # isort: skip
    ALGORITHMS, HAS_REPLAY, load, make_agent, of_shared_blocks, rows, run_script, settings, train,
)  # fmt: skip
from gymnasium.spaces import Box
from torch import nn

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = Box(np.array([-1.0, 0.0]), np.array([1.0, 4.0]), dtype=np.float64)
VARIANTS = [
    *((name, {}) for name in ALGORITHMS), ("sac", {"alpha": "auto"}), ("sac", {"value_network": True}),
    ("ddpg", {"noise": "ou"}), ("ddpg", {"network": "lillicrap"}), ("a2c", {"optimizer": "adam"}),
    ("a2c", {"shared_network": True}), ("reinforce", {"baseline": "optimal"}),
    ("ppo", {"target_kl": 0.01}),
]  # fmt: skip
EVERYWHERE = {"env_id": "HalfCheetah-v5", "total_timesteps": 1_000_000, "num_envs": 8, "gamma": 0.99}
ROLLOUTS = EVERYWHERE | {"anneal_lr": True, "log_std_init": -0.5, "norm_obs": True}
CRITIC = ROLLOUTS | {"gae_lambda": 0.95, "norm_reward": True}
CLIPPED = CRITIC | {"vf_coef": 0.5, "ent_coef": 0.0, "max_grad_norm": 0.5}
REPLAY = EVERYWHERE | {"learning_rate": 1e-3, "tau": 0.005, "batch_size": 256, "buffer_size": 1_000_000}
DEFAULTS = {
    "reinforce": ROLLOUTS | {
        "num_envs": 4, "learning_rate": 5e-3, "estimator": "reward-to-go", "baseline": "value", "value_epochs": 4,
        "bootstrap": True, "scale_gradient": True,
    },
    "a2c": CLIPPED | {
        "learning_rate": 2e-3, "num_steps": 16, "optimizer": "rmsprop", "shared_network": False, "norm_adv": False,
    },
    "ppo": CLIPPED | {
        "learning_rate": 3e-4, "num_steps": 256, "update_epochs": 10, "num_minibatches": 32, "clip_coef": 0.2,
        "target_kl": None, "recompute_advantages": True,
    },
    "trpo": CRITIC | {
        "learning_rate": 1e-3, "num_steps": 125, "update_epochs": 20, "num_minibatches": 1, "max_kl": 0.01,
        "cg_max_steps": 10, "cg_damping": 0.1, "line_search": True, "line_search_max_iter": 10,
        "line_search_shrinking_factor": 0.8,
    },
    "ddpg": REPLAY | {
        "learning_starts": 25_000, "exploration_noise": 0.1, "actor_learning_rate": None, "critic_weight_decay": 0.0,
        "network": "fujimoto", "noise": "normal", "ou_theta": 0.15,
    },
    "td3": REPLAY | {
        "learning_rate": 3e-4, "learning_starts": 25_000, "policy_delay": 2, "policy_noise": 0.2, "noise_clip": 0.5,
        "exploration_noise": 0.1,
    },
    "sac": REPLAY | {"learning_starts": 10_000, "alpha": "0.2", "value_network": False},
    "her_ddpg": REPLAY | {
        "env_id": "FetchPush-v4", "gamma": 0.98, "tau": 0.05, "learning_starts": 1_000, "batch_size": 2048,
        "episodes_per_cycle": 16, "updates_per_cycle": 40, "her": True, "goal_strategy": "future", "num_goals": 4,
        "exploration_noise": 0.2, "random_eps": 0.3, "action_l2": 1.0, "clip_target": True,
    },
}  # fmt: skip


def test_defaults(algorithm):
    """Every setting of the algorithm, and that the networks and optimisers are made with it."""
    args, wanted = load(algorithm).Args(), DEFAULTS[algorithm]
    machinery = vars(load("td3").Args()).keys() & vars(load("ppo").Args()).keys() - {*EVERYWHERE, "learning_rate"}
    assert {name: x for name, x in vars(args).items() if name not in machinery} == wanted
    a = make_agent(algorithm, OBSERVATIONS, ACTIONS, **wanted)
    if algorithm in HAS_REPLAY:
        critic = a.critic if hasattr(a, "critic") else a.critics[0]
        for net in (a.actor.net, critic.net):
            assert [layer.out_features for layer in net[:-1:2]] == [256] * (3 if algorithm == "her_ddpg" else 2)
    else:
        assert a.optimizer.defaults["eps"] == 1e-5 and getattr(a, "minibatch_size", 0) in (0, 64, 1000)
    for optimizer in (x for x in vars(a).values() if isinstance(x, torch.optim.Optimizer)):
        assert optimizer.param_groups[0]["lr"] == wanted["learning_rate"]


def agent(algorithm: str, **changes):
    """A fresh agent, its weights drawn from seed 0, of which an update moves every part."""
    quick = {"num_envs": 4, "learning_rate": 0.01} | ({"policy_delay": 1} if algorithm == "td3" else {})
    return make_agent(algorithm, OBSERVATIONS, ACTIONS, **quick | changes)


def batch(algorithm: str, t: int = 6, n: int = 4, **where) -> list:
    """Arguments of update: transitions [t * n], or t steps of n environments and the share of the run that is over."""
    torch.manual_seed(1)
    s, a, r, s2 = (torch.randn(t, n, size) for size in (3, 2, 1, 3))
    end = (torch.arange(t) == t - 1).float().unsqueeze(1).expand(t, n).contiguous()  # of the episodes
    if algorithm in HAS_REPLAY:
        return [x.flatten(0, 1).to(**where) for x in (s, a, r.squeeze(-1), s2, end)]
    rest = [torch.ones(t, n), s2[-1], end[-1]] if algorithm == "reinforce" else [s2, 0 * end, end]
    return [x.to(**where) for x in (s, a, r.squeeze(-1), *rest)] + [0.5]


def parameters(a: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in a.state_dict().items() if isinstance(x, torch.Tensor)}


def reinforce_without_masks(a, s, act, r, running, s_end, terminal, progress):
    """REINFORCE.update but for the selection of rows: how many steps there are has to come to the host."""
    s = a.normalise(s)
    g = a.returns(r, a.normalise(s_end), terminal, running)
    a.policy_gradient(a.actor.log_prob(s, act)[0], a.advantages(s, g, running), running)
    a.fit_value(s.flatten(0, 1), g.flatten())
    a.obs_stats.update(s.flatten(0, 1))


def ppo_that_never_stops(a, *rollout):
    """PPO.update; with --target-kl the answer whether to go on has to come to the host."""
    if a.args.target_kl is not None:
        a.too_far = lambda minibatch: False
    a.update(*rollout)


HOST_SYNCS = {  # what cannot be done without the host, and what is tested instead of update
    "reinforce": reinforce_without_masks,  # how many steps the episodes have decides the sizes of its batch
    "ppo": ppo_that_never_stops,  # stopping at target_kl
    "trpo": lambda a, *rollout: (setattr(a, "take", lambda *x: {}), a.update(*rollout)),  # the line search branches
    "her_ddpg": lambda a, *transitions: a.cycle(*transitions),  # no sync: it holds update
}


@pytest.mark.parametrize(("algorithm", "changes"), VARIANTS)
def test_everything_is_made_on_the_agents_device_and_nothing_comes_to_the_host(algorithm, changes, monkeypatch):
    """Tensors of the device "meta" have no values, so that reading one, or mixing in one of the CPU, is an error."""
    plain = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, fused=None, **options: plain(*args, **options))
    a, s = agent(algorithm, device="meta", **changes), torch.randn(4, 3, device="meta")
    actions = [a.act(s), a.explore(s)] + ([a.explore_uniformly(4)] if algorithm in HAS_REPLAY else [])
    if changes.get("noise") == "ou":
        a.restart_noise(torch.ones(4, dtype=torch.bool, device="meta"))
    assert all(x.is_meta and x.shape == (4, 2) for x in actions)
    for _ in range(2):
        HOST_SYNCS.get(algorithm, type(a).update)(a, *batch(algorithm, device="meta"))
    assert all(x.is_meta for x in parameters(a).values())


PARTS = [(name, part) for name in ALGORITHMS for part in ("actor", "critic")]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("algorithm", "part"), [x for x in PARTS if x != ("trpo", "actor")])
def test_a_replaced_network_is_an_error_at_the_first_update_that_says_what_to_do(algorithm, part, frozen):
    """As by a subclass after super().__init__(). (TRPO moves whatever actor there is.)"""
    a = agent(algorithm)
    module, name = (a.critics, "0") if part == "critic" and hasattr(a, "critics") else (a, part)
    setattr(module, name, copy.deepcopy(getattr(module, name)).requires_grad_(not frozen))
    with pytest.raises(RuntimeError, match=r"replacing a module.*optimizer"):
        a.update(*batch(algorithm))


@pytest.mark.parametrize(("algorithm", "part"), PARTS)
def test_a_frozen_layer_stays_and_the_rest_learns(algorithm, part):
    a = agent(algorithm)
    trained = {name: p for name, p in a.named_parameters() if name.startswith(part) and p.requires_grad}
    frozen = next(name for name, p in trained.items() if p.dim() == 2)
    trained[frozen].requires_grad_(False)
    before = parameters(a)
    a.update(*batch(algorithm))
    assert len(trained) > 1 and [name for name, p in trained.items() if torch.equal(p, before[name])] == [frozen]


@pytest.mark.parametrize(("algorithm", "part"), PARTS)
def test_a_frozen_network_stays_and_the_rest_learns(algorithm, part):
    a = agent(algorithm)
    part = "critics" if part == "critic" and hasattr(a, "critics") else part
    a.update(*batch(algorithm))  # leaves gradients behind
    getattr(a, part).requires_grad_(False)
    before = parameters(a)
    a.update(*batch(algorithm))
    moved = {name.partition(".")[0] for name, x in parameters(a).items() if not torch.equal(x, before[name])}
    assert part not in moved and moved & {"actor", "critic", "critics"}


@of_shared_blocks
def test_compiled_steps_equal_eager_ones(algorithm, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    if algorithm == "td3":  # what is compiled for a broken agent must not spoil the next one
        broken = agent(algorithm, compile=True)
        broken.actor = copy.deepcopy(broken.actor)
        with pytest.raises(RuntimeError, match="have no part in actor_loss"):
            broken.update(*batch(algorithm))
    results = []
    for compiled in (False, True):
        a = agent(algorithm, compile=compiled)
        infos = [a.update(*batch(algorithm)) for _ in range(2)]
        results.append(parameters(a) | {name: torch.as_tensor(x) for name, x in infos[1].items()})
    for name, x in results[0].items():
        torch.testing.assert_close(results[1][name], x, atol=1e-5, rtol=1e-3, msg=name)


def test_actions_are_inside_the_bounds_and_only_those_of_explore_random(algorithm):
    low, high = contract_envs.LOW, contract_envs.HIGH
    a = make_agent(algorithm, OBSERVATIONS, Box(low, high, dtype=np.float64), num_envs=500)
    s, to_env = torch.randn(500, 3), getattr(a.actor, "to_env", lambda x: x)
    explored = to_env(a.explore(s))
    assert torch.equal(a.act(s), a.act(s)) and not torch.equal(explored, to_env(a.explore(s)))
    for p in a.actor.parameters():
        p.data *= 100
    for x in (a.act(s), explored, to_env(a.explore(s))):
        assert x.dtype == torch.float32 and (x.numpy() >= low).all() and (x.numpy() <= high).all()
    assert (a.act(s).numpy().min(0) == low).all() and (a.act(s).numpy().max(0) == high).all()


def test_evaluation_is_of_act_in_eval_mode_and_with_statistics_as_they_are(algorithm, monkeypatch):
    module = load(algorithm)
    envs = module.VectorEnvs("contract_envs:Strict-v0", 2, evaluation=True)
    a, modes = make_agent(algorithm, envs.observation_space, envs.action_space), []
    a.actor.add_module("spy", nn.Dropout())
    act = a.act
    monkeypatch.setattr(a, "act", lambda s: (modes.append([m.training for m in a.modules()]), act(s))[1])
    monkeypatch.setattr(a, "explore", None)
    if hasattr(a, "obs_stats"):
        raw = act(torch.ones(1, 2))
        a.obs_stats.update(torch.randn(100, 2) * 3 + 5)
        assert not torch.equal(act(torch.ones(1, 2)), raw), "applied"
    before = parameters(a)
    results = [module.evaluate(a, envs, 3, 3, "cpu") for _ in range(2)]
    assert results[0] == results[1] and [set(x) for x in results[0]] == [{"return", "length"}] * 3
    assert modes and not any(any(mode) for mode in modes) and all(m.training for m in a.modules())
    assert all(torch.equal(x, before[name]) for name, x in parameters(a).items())


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_trains_resumes_and_evaluates_on_an_accelerator(device: str, algorithm: str, tmp_path):
    if not getattr(torch, device).is_available():
        pytest.skip(f"no {device} here")
    folder = train(algorithm, env_id="Pendulum-v1", run_dir=tmp_path / "run", device=device)
    for words in (["--resume", folder, "--total-timesteps=512"], ["--evaluate", folder, "--device=cpu"]):
        result = run_script(algorithm, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert int(rows(folder / "eval.csv")[-1]["step"]) >= 512


@of_shared_blocks
def test_threads_and_precision_are_those_of_the_settings(algorithm):
    """The last run's are not kept: a second one in the same process sets its own."""
    for threads, precision in ((2, "medium"), (1, "highest")):
        load(algorithm).prepare(settings(algorithm, threads=threads, matmul_precision=precision))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
