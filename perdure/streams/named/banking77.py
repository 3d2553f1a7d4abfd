"""Banking77: what customers of a bank ask, 77 intents.

The paper's order (arXiv 2312.07887) is that of categories.json; the classes below are in it. It
took the test rows for validation, too; here validation rows come from the training rows.
"""

from __future__ import annotations

from perdure.streams.named.base import ClassStream, Found, Source, tasks_of
from perdure.streams.sources import Reading

CLASSES = """
    card_arrival card_linking exchange_rate card_payment_wrong_exchange_rate
    extra_charge_on_statement pending_cash_withdrawal fiat_currency_support
    card_delivery_estimate automatic_top_up card_not_working exchange_via_app
    |
    lost_or_stolen_card age_limit pin_blocked contactless_not_working
    top_up_by_bank_transfer_charge pending_top_up cancel_transfer top_up_limits
    wrong_amount_of_cash_received card_payment_fee_charged transfer_not_received_by_recipient
    |
    supported_cards_and_currencies getting_virtual_card card_acceptance top_up_reverted
    balance_not_updated_after_cheque_or_cash_deposit card_payment_not_recognised
    edit_personal_details why_verify_identity unable_to_verify_identity get_physical_card
    visa_or_mastercard
    |
    topping_up_by_card disposable_card_limits compromised_card atm_support
    direct_debit_payment_not_recognised passcode_forgotten declined_cash_withdrawal
    pending_card_payment lost_or_stolen_phone request_refund declined_transfer
    |
    Refund_not_showing_up declined_card_payment pending_transfer terminate_account
    card_swallowed transaction_charged_twice verify_source_of_funds transfer_timing
    reverted_card_payment? change_pin beneficiary_not_allowed
    |
    transfer_fee_charged receiving_money failed_transfer transfer_into_account verify_top_up
    getting_spare_card top_up_by_cash_or_cheque order_physical_card virtual_card_not_working
    wrong_exchange_rate_for_cash_withdrawal get_disposable_virtual_card
    |
    top_up_failed balance_not_updated_after_bank_transfer cash_withdrawal_not_recognised
    exchange_charge top_up_by_card_charge activate_my_card cash_withdrawal_charge
    card_about_to_expire apple_pay_or_google_pay verify_my_identity country_support
"""
HUB = "legacy-datasets/banking77"
"""PolyAI's, as Parquet files; PolyAI/banking77 needs code to be run."""


def _read(source: Source) -> Found | None:
    tasks = tasks_of(CLASSES)
    if source.folder is None:
        tables = {s: source.hub(HUB, s, ("text", "label")) for s in ("train", "test")}
        return Found({s: table for s, table in tables.items() if table is not None}, tasks)
    how = Reading(",", "utf-8", ("text", "category"))
    files = {
        split: source.reader.file(str(source.folder / f"{split}.csv"), how)
        for split in ("train", "test")
    }
    found = {split: table for split, table in files.items() if table is not None}
    return Found(found, tasks, {"label": "category"})


STREAM = ClassStream(
    name="banking77",
    about="intents of a bank's customers, 7 tasks of 11",
    licence="CC BY 4.0",
    citation="Casanueva et al. 2020, Efficient Intent Detection with Dual Sentence Encoders "
    "(NLP4ConvAI), arXiv 2003.04807",
    home="github.com/PolyAI-LDN/task-specific-datasets (banking_data)",
    order="SEQ*'s (arXiv 2312.07887): that of categories.json",
    classes=tasks_of(CLASSES),
    rows=(10_003, None, 3_080),
    files=("train.csv", "test.csv"),
    hub=(HUB,),
    read=_read,
    validated=False,
    remark="a tenth of the training rows is set aside for validation; data: "
    "{validation_share: 0} learns all of them, as the paper did",
)
