"""CLINC150: questions to an assistant, 150 intents and questions that none of them answers.

The paper's order (arXiv 2312.07887) is that of its file of labels; the classes below are in it.
"""

from __future__ import annotations

from perdure.streams.named.base import ClassStream, Found, Source, tasks_of

CLASSES = """
    restaurant_reviews improve_credit_score transfer change_language transactions
    ingredients_list ingredient_substitution timer definition no
    |
    direct_deposit flip_coin are_you_a_bot book_flight restaurant_suggestion repeat user_name
    report_lost_card nutrition_info recipe
    |
    rollover_401k travel_notification text bill_balance spelling tell_joke directions
    do_you_have_pets pin_change pto_request_status
    |
    flight_status change_user_name credit_limit_change cancel pto_balance translate
    exchange_rate roll_dice change_ai_name sync_device
    |
    insurance_change calendar_update expiration_date update_playlist pay_bill reminder_update
    travel_alert cancel_reservation food_last greeting
    |
    calendar gas_type credit_score min_payment next_holiday calories cook_time what_song
    international_fees interest_rate
    |
    freeze_account maybe lost_luggage meaning_of_life spending_history change_speed
    redeem_rewards reminder todo_list oil_change_when
    |
    credit_limit accept_reservations shopping_list_update meeting_schedule current_location
    share_location what_can_i_ask_you income insurance calculator
    |
    payday timezone gas how_busy pto_request bill_due who_made_you new_card car_rental
    travel_suggestion
    |
    plug_type international_visa play_music w2 confirm_reservation schedule_meeting
    what_is_your_name time weather carry_on
    |
    where_are_you_from smart_home order last_maintenance order_status order_checks
    how_old_are_you damaged_card schedule_maintenance alarm
    |
    yes change_volume what_are_your_hobbies vaccines todo_list_update routing shopping_list
    taxes next_song book_hotel
    |
    report_fraud replacement_card_duration change_accent jump_start card_declined fun_fact
    tire_pressure goodbye uber tire_change
    |
    oil_change_how meal_suggestion date make_call balance apr whisper_mode traffic
    measurement_conversion application_status
    |
    pto_used account_blocked find_phone mpg thank_you restaurant_reservation distance
    rewards_balance who_do_you_work_for reset_settings
"""
HUB = "clinc/clinc_oos"
OUT = "oos"
"""Their name for the class of what is in no class."""
SPLITS = {"train": "train", "validation": "val", "test": "test"}


def _read(source: Source) -> Found | None:
    tasks = tasks_of(CLASSES)
    if source.folder is None:
        columns = {"label": "intent"}
        hub = {s: source.hub(HUB, s, ("text", "intent"), "plus") for s in SPLITS}
        tables = {split: table for split, table in hub.items() if table is not None}
        return Found(tables, tasks, columns)
    file = "data_full.json"
    data = source.json(file)
    found = {}
    for split, name in SPLITS.items():
        rows = []
        for part in (name, f"oos_{name}"):
            some = data.get(part) if isinstance(data, dict) else None
            if not isinstance(some, list) or any(
                not isinstance(pair, list) or len(pair) != 2 for pair in some
            ):
                if data is not None:
                    source.wrong(file, f'has no list "{part}" of [text, intent]')
                return None
            rows += [
                (f"{part}, row {n}", {"text": text, "label": label})
                for n, (text, label) in enumerate(some, 1)
            ]
        found[split] = source.table(file, rows)
    return Found(found, tasks)


STREAM = ClassStream(
    name="clinc150",
    about="intents of questions to an assistant, 15 tasks of 10; and questions of no intent",
    licence="CC BY 3.0",
    citation="Larson et al. 2019, An Evaluation Dataset for Intent Classification and "
    "Out-of-Scope Prediction (EMNLP-IJCNLP)",
    home="github.com/clinc/oos-eval (data/data_full.json)",
    order="SEQ*'s (arXiv 2312.07887): one fixed order",
    classes=tasks_of(CLASSES),
    rows=(15_000, 3_000, 4_500),
    files=("data_full.json",),
    hub=(f"{HUB} (plus)",),
    read=_read,
    no_class=OUT,
    remark="100 validation and 1,000 test rows of no class stand beside the tasks",
)
