"""`fedsim audit`: can the claimed epsilon be refuted?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run_files import CONFIG_FILE
from fedsim_userdp.printable import printable
from fedsim_userdp.simulations.arguments import check_types
from fedsim_userdp.simulations.job_folder import folder_of_job
from fedsim_userdp.simulations.names import made

if TYPE_CHECKING:
    from fedsim_userdp.report.audit_progress import StepProgress
    from fedsim_userdp.simulations.auditor import Auditor

REFUTED = 1  # exit code
_INFINITE = {".inf": "inf", "+.inf": "inf"}  # as YAML spells it, which Hydra reads as a text


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="audit")
def main(config: DictConfig) -> None:
    """Audits a run for each claim; writes `audit.json`, `audit.csv` and `audit.png`; exits with 1 if one is refuted."""
    with folder_of_job(holds_a_run=True) as folder:
        is_refuted = audit(config, folder)
    if is_refuted:
        sys.exit(REFUTED)


def audit(config: DictConfig, folder: Path) -> bool:
    """Audits into a folder; returns whether a claim is refuted."""
    check_types(config, "audit")
    epsilons = claims_of(config)
    from fedsim_userdp.report import audit as report  # here, so that --help and refusals need not load torch
    from fedsim_userdp.report.audit_plot import plot_audit
    from fedsim_userdp.report.audit_progress import StepProgress
    from fedsim_userdp.report.files import write_text
    from fedsim_userdp.report.table import result_console

    console = result_console()
    claims: list[report.AuditedClaim] = []
    with StepProgress(console) as progress:
        auditor = open_auditor(config, folder, epsilons, progress)
        write_text(folder / CONFIG_FILE, OmegaConf.to_yaml(config, resolve=True))
        for epsilon in epsilons:
            claims.append(auditor.audit(epsilon))
            report.write_audit(folder, claims)
    plot_audit(folder / "audit.png", claims)
    for table in (report.bounds_table(claims), report.attacks_table(claims)):
        console.print(table)
    for text in (
        report.legend(claims),
        "",
        *report.observers(claims),
        "",
        report.summary(claims),
        report.LIMITS,
        f"run folder: {printable(str(folder))}",
    ):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return any(claim.is_refuted for claim in claims)


def claims_of(config: DictConfig) -> tuple[float, ...]:
    """Returns the epsilons to audit: those listed, or privacy.epsilon where none are.

    Raises:
        ConfigError: when they are no list of numbers.
    """
    listed = config.audit.epsilons
    if listed is None:
        return (float(config.privacy.epsilon),)
    if not isinstance(listed, ListConfig):
        raise ConfigError(f"audit.epsilons={listed} must be a list of numbers, such as [1,8,inf], or null")
    try:
        return tuple(float(_INFINITE.get(epsilon, epsilon)) for epsilon in listed)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"audit.epsilons={list(listed)} must be a list of numbers, such as [1,8,inf]") from error


def open_auditor(config: DictConfig, folder: Path, epsilons: tuple[float, ...], progress: "StepProgress") -> "Auditor":
    """Returns the audit of a configuration, its settings checked and its canaries drawn, before any training.

    Raises:
        ConfigError, ValueError: one sentence on what is wrong with the configuration.
    """
    from fedsim_userdp.mechanisms.user_wise import UserWise
    from fedsim_userdp.mechanisms.user_wise_adaptive import UserWiseAdaptive
    from fedsim_userdp.simulations.auditor import Auditor, AuditSettings
    from fedsim_userdp.simulations.configured import configured_run

    mechanism = made("mechanism", config.mechanism)
    if isinstance(mechanism, UserWiseAdaptive):
        raise ConfigError(
            f"mechanism={config.mechanism.name}: canaries have their norm in units of a clip norm that stays, so only "
            "user_wise can be audited"
        )
    if not isinstance(mechanism, UserWise):
        raise ConfigError(f"mechanism={config.mechanism.name}: canaries are users, so only user_wise can be audited")
    settings = AuditSettings(
        epsilons=epsilons,
        confidence=config.audit.confidence,
        num_candidates=config.audit.candidates,
        num_real_users=config.audit.real_users,
        canaries=dict(config.audit.canaries),
        window=config.tokens.window,
        records_per_user=config.evaluation.records_per_user,
    )
    return Auditor(configured_run(config, folder), mechanism, settings, progress)
