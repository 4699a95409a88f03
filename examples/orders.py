"""An order and its payment in one transaction of SQLAlchemy: both, or neither.

With a worker (`entityq worker -A examples.bank:app`), and DATABASE_URL for the database that entityq uses, as in
postgresql+psycopg://user@host/database: `python -m examples.orders`.
"""

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from entityq import Receipt
from entityq.integrations.sqlalchemy import send
from examples.bank import Account, app


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[int]


def place(session: Session, order: Order) -> Receipt[int]:
    """Stored and sent when the session commits."""
    session.add(order)
    account = Account.at(order.customer)
    return send(session, account.withdraw.request(order.amount, reference=order.id))


def main() -> None:
    engine = create_engine(os.environ["DATABASE_URL"])
    Base.metadata.create_all(engine)
    deposits = [Account.at(name).deposit.request(100, reference=f"gift {name}") for name in ("ann", "bob")]
    print([sent.receipt.get() for sent in app.delay_many(deposits)])
    with Session(engine) as session, session.begin():
        receipt = place(session, Order(id="order-1", customer="ann", amount=30))
    print(receipt.get())


if __name__ == "__main__":
    main()
